"""Where a shard's first state comes from; each source is small and makes the vectors in place."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import CheckpointError
from dbdask.models.cut_table import CutTable, Segment, initial_of_cut
from dbdask.models.layout import as_layout
from dbdask.models.member_checks import checked_initial
from dbdask.optim.optimizer_checks import initial_slots
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.calls import ActorPlace, call_actor
from dbdask.rpc.local_workers import name_of_here, this_worker
from dbdask.rpc.loops import start_on, worker_loop
from dbdask.rpc.portable import portable_errors
from dbdask.rpc.store_calls import call_store
from dbdask.schedule.ledger import Ledger, Row
from dbdask.storage import checkpoint
from dbdask.storage.checkpoint import VectorReference
from dbdask.users_code import UsersCode
from dbdask.worker.shard_state import ShardState

READ_AT_ONCE = 2**24
"""Elements of a stored vector that are held beside those that have been read."""


@dataclass(frozen=True)
class FromModel:
    """The model's own initial parameters for a seed."""

    model: bytes
    seed: int
    is_replaced: bool = False  # by parameters that were given: the model is not asked
    table: CutTable | None = None  # of a model that is cut

    @portable_errors
    def __call__(self, start: int, stop: int, optimizer: Optimizer) -> ShardState:
        vectors = {"parameters": self._parameters(start, stop)}
        with UsersCode("optimizer.initial_slot"):
            vectors |= initial_slots(optimizer, stop - start)
        return ShardState(vectors, 0, Ledger())

    def _parameters(self, start: int, stop: int) -> Float32Array:
        if self.is_replaced:
            return np.zeros(stop - start, np.float32)
        with UsersCode("model.initial_parameters"):
            model = pickle.loads(self.model)
            if self.table is not None:
                return initial_of_cut(model, self.table, self.seed, start, stop)
            given = model.initial_parameters(self.seed, start, stop)
            layout = as_layout(model.layout)
        return checked_initial(given, layout, start, stop)


@dataclass(frozen=True)
class FromSnapshot:
    """A slice of a committed snapshot, which any number of shards may have written."""

    path: str
    group: str
    applied: int
    rows: tuple[Row, ...]
    first_open_epoch: int
    table: CutTable | None = (
        None  # of a model that is cut now; another cut may have written the snapshot
    )

    def __call__(self, start: int, stop: int, optimizer: Optimizer) -> ShardState:
        nbytes = 4 * (stop - start) * (2 + len(optimizer.slots))
        place = f"checkpoint={self.path!r}"
        doing = f"{name_of_here()} read parameters {start} to {stop} of snapshot {self.group}"
        vectors = call_store(
            place, doing, self._read, start, stop, error=CheckpointError, nbytes=nbytes
        )
        ledger = Ledger.from_rows(self.rows, self.first_open_epoch)
        return ShardState(vectors, self.applied, ledger)

    def _read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        path, group = self.path, self.group
        names = checkpoint.vector_names(path, group)
        if self.table is None:
            return {name: checkpoint.read_slice(path, group, name, start, stop) for name in names}
        segments = list(self.table.segments(start, stop))
        return {name: checkpoint.read_segments(path, group, name, segments) for name in names}


class StoredRange(NamedTuple):
    """Elements of one parameter, which are contiguous in the model's vector and in a stored one."""

    name: str
    whole: int
    """The first element in the model's vector."""
    stored: int
    """The first element in the stored vector."""
    length: int


@dataclass(frozen=True)
class FromStored:
    """Parameters that another run has left in a store; no process reads more than its slice.

    Parameters
    ----------
    reference
        Where they are.
    ranges
        Where each parameter of the model is in the stored vector, in the model's order.
    table
        Of a model that is cut.
    """

    reference: VectorReference
    ranges: tuple[StoredRange, ...]
    table: CutTable | None = None

    @portable_errors
    def __call__(self, start: int, stop: int, optimizer: Optimizer) -> ShardState:
        vectors = {"parameters": self.read(start, stop)}
        with UsersCode("optimizer.initial_slot"):
            vectors |= initial_slots(optimizer, stop - start)
        return ShardState(vectors, 0, Ledger())

    def read(self, start: int, stop: int) -> Float32Array:
        """Return a slice of the shards' vector, float32 (stop - start,), within `dbdask.store`.

        Raises
        ------
        CheckpointError, ResultError
            The store is damaged, or hangs.
        ValueError
            A number is not finite; the error names its parameter.
        """
        reference = self.reference
        vector: Float32Array = call_store(
            f"{reference.argument}={str(reference.path)!r}",
            f"{name_of_here()} read {reference.name} {start} to {stop}",
            self._read,
            start,
            stop,
            error=reference.error,
            nbytes=4 * (stop - start),
        )
        return vector

    def _read(self, start: int, stop: int) -> Float32Array:
        vector = np.empty(stop - start, np.float32)
        for name, at, stored, length in self._pieces(start, stop):
            values = vector[at - start : at - start + length]
            for first in range(0, length, READ_AT_ONCE):
                last = min(first + READ_AT_ONCE, length)
                values[first:last] = self.reference.read(stored + first, stored + last)
            check_finite(name, values)
        return vector

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield the pieces of a slice of the shards' vector.

        Each is a name, its first element in that vector and in the stored one, and its length.
        """
        uncut = (Segment(start, start, stop - start),)
        segments = uncut if self.table is None else self.table.segments(start, stop)
        for at, whole, length in segments:
            for name, first, stored, elements in self.ranges:
                begin, end = max(whole, first), min(whole + length, first + elements)
                if begin < end:
                    yield name, at + begin - whole, stored + begin - first, end - begin


def check_finite(name: str, values: np.ndarray) -> None:
    """Check that a parameter to start from, float of any shape, is finite.

    Raises
    ------
    ValueError
        It holds NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            f"parameters must be finite, but {name!r} holds NaN or infinity: "
            "give those of an earlier snapshot, or None to start anew"
        )


@dataclass(frozen=True)
class FromNeighbour:
    """The state of a shard that still answers: it moves from worker to worker directly."""

    place: ActorPlace

    def __call__(self, start: int, stop: int, optimizer: Optimizer) -> ShardState:
        worker = this_worker()
        nbytes = 4 * (stop - start) * (2 + len(optimizer.slots))
        call = call_actor(worker.rpc, self.place, "whole_state", nbytes=nbytes)
        state: ShardState = start_on(worker_loop(worker), call).result()
        return state.everything()  # what came off the wire may be read-only
