"""Where a shard's first state comes from; each source is small and makes the vectors in place."""

import pickle
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import CheckpointError
from dbdask.models.cut_table import CutTable, initial_of_cut
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
from dbdask.users_code import UsersCode
from dbdask.worker.shard_state import ShardState


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
