"""A parameter shard: a slice of the flat vector that stores itself and applies its own updates."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dbdask.errors import Stale
from dbdask.optim.optimizer_checks import prepared_update
from dbdask.optim.optimizers import Optimizer
from dbdask.schedule.ledger import Ledger, Row, ShardProgress
from dbdask.storage import checkpoint
from dbdask.storage.cut_vectors import CutSlice
from dbdask.users_code import UsersCode
from dbdask.worker.served_actor import ServedActor
from dbdask.worker.shard_state import ShardState


class Acknowledgement(NamedTuple):
    """A shard's answer to a push."""

    version: int  # updates applied so far
    staleness: int  # updates applied between the push's fetch and the push; -1 for a repeat
    pause: bool  # the replica hands its portion back after this push


class Progress(NamedTuple):
    """A shard's knowledge of a portion."""

    last_step: int
    pause: bool


class ParameterShard(ServedActor):
    """Elements `start` to `stop` of the flat vector, with their optimiser state and ledger.

    Parameters
    ----------
    start, stop
        The slice, in elements of the flat vector.
    optimizer
        The update rule, which runs here.
    generation
        Messages of another generation are refused with `Stale`.
    initial
        Makes the first state on this worker, so that no vector travels.
    trained
        Ranges of the flat vector that updates may change; None is all of it.
    buffers
        Ranges that no update changes, and of which a push brings new values.
    cut_slice
        Where the slice is in the model's own vector and in a snapshot, if the model is cut.
    """

    requests = frozenset({"progress", "fetch", "push", "fetch_copy"})

    def __init__(
        self,
        start: int,
        stop: int,
        optimizer: Optimizer,
        generation: int,
        initial: Callable[[int, int, Optimizer], ShardState],
        trained: Sequence[tuple[int, int]] | None = None,
        buffers: Sequence[tuple[int, int]] = (),
        cut_slice: CutSlice | None = None,
    ) -> None:
        state = initial(start, stop, optimizer)
        super().__init__(stop - start, generation, state.answers)
        self.state = state
        self.start, self.stop = start, stop
        self.cut_slice = cut_slice
        self.optimizer = optimizer
        self.trained = _within(trained or [(start, stop)], start, stop)
        self.buffers = _within(buffers, start, stop)
        self.pausing = False

    # Requests of replicas

    def progress(self, epoch: int, portion: int) -> Progress:
        """Return the last step applied of a portion, and whether the run is pausing."""
        return Progress(self.state.ledger.last(epoch, portion), self.pausing)

    def fetch(self, into: np.ndarray) -> int:
        """Copy the parameters into `into`, float32 (stop - start,); return the updates in them."""
        np.copyto(into, self.state.vectors["parameters"])
        return self.state.applied

    def push(
        self,
        identity: tuple[int, int, int],
        fetched: int,
        gradient: np.ndarray,
        into: np.ndarray | None = None,
    ) -> Acknowledgement:
        """Apply a gradient once; a repeat of its identity changes nothing.

        Parameters
        ----------
        identity
            Epoch, portion and step of the gradient.
        fetched
            Number of updates in the parameters that the replica fetched last; the staleness is
            counted from it.
        gradient
            The accrued gradient of this shard's slice, float32 (stop - start,).
        into
            If given, float32 (stop - start,): the current parameters are copied into it after the
            update. A replica that fetches before every minibatch then needs no message for the
            fetch.

        Raises
        ------
        Exception
            The error of the optimiser, with a note that says in which update. The gradient was not
            applied.
        """
        acknowledgement = self._push(identity, fetched, gradient)
        if into is not None:
            self.fetch(into)
        return acknowledgement

    def _push(
        self, identity: tuple[int, int, int], fetched: int, gradient: np.ndarray
    ) -> Acknowledgement:
        if not self.state.ledger.is_new(*identity):
            return Acknowledgement(self.state.applied, -1, self.pausing)
        staleness = max(
            0, self.state.applied - fetched
        )  # a copy may be behind the copy fetched from
        self._update(gradient)
        self.state.ledger.admit(*identity)  # now: an update that raises was not applied
        return Acknowledgement(self.state.applied, staleness, self.pausing)

    def fetch_copy(self, number: int, first: int, into: np.ndarray) -> None:
        """Copy parameters of a snapshot copy into `into`, float32 (n,), from element `first` on.

        Raises
        ------
        Stale
            The copy is not in this shard.
        """
        np.copyto(into, self._kept(number).vectors["parameters"][first : first + len(into)])

    def _update(self, gradient: np.ndarray) -> None:
        """Apply a gradient; an error of the optimiser says where it was."""
        try:
            with UsersCode("optimizer"):
                self._apply(gradient)
        except Exception as error:
            error.add_note(
                f"in the optimizer's update {self.state.applied} of parameters {self.start} to "
                f"{self.stop}"
            )
            raise

    def _apply(self, gradient: np.ndarray) -> None:
        """Let the optimiser update the trained ranges, and take the push's buffers.

        What can fail comes before any change.
        """
        update = prepared_update(self.optimizer, self.state.applied)
        vectors = self.state.vectors
        for part in self.trained:
            slots = {name: vectors[name][part] for name in self.optimizer.slots}
            update(vectors["parameters"][part], gradient[part], slots)
        for part in self.buffers:
            vectors["parameters"][part] = gradient[part]
        self.state.applied += 1

    def _kept(self, number: int) -> ShardState:
        """Return a snapshot copy.

        Raises
        ------
        Stale
            A recovery has dropped the copy, or this shard is newer than the copy.
        """
        if number not in self.state.copies:
            raise Stale(f"copy {number} is not in this shard")
        return self.state.copies[number]

    def _vector(self, name: str) -> np.ndarray:
        """Return a vector.

        Raises
        ------
        Stale
            The shard was made anew without it.
        """
        if name not in self.state.vectors:
            raise Stale(f"vector {name!r} is not in this shard")
        return self.state.vectors[name]

    # Commands of the client, by name: each has a running number and is carried out once

    async def _advance(self, generation: int) -> ShardProgress:
        """Enter a new generation: late messages of the old generation are refused."""
        self.generation = max(self.generation, generation)
        return await self._serve(self._shard_progress)

    async def _pause(self, pausing: bool) -> ShardProgress:
        """Ask replicas, by their next acknowledgement, to hand their portions back (or not)."""
        self.pausing = pausing
        return await self._serve(self._shard_progress)

    def _shard_progress(self) -> ShardProgress:
        return ShardProgress(self.state.ledger.rows(), self.state.applied)

    async def _copy(self, number: int, whole: bool) -> int:
        """Keep a copy of the parameters, or of the whole state, under a number.

        Returns the updates in it.
        """
        return await self._serve(self._take_copy, number, whole)

    def _take_copy(self, number: int, whole: bool) -> int:
        self.state.copies[number] = self.state.copy(None if whole else ["parameters"])
        return self.state.applied

    async def _keep_best(self, number: int) -> None:
        """Keep the parameters of a copy as the best so far."""
        await self._serve(self._take_best, number)

    def _take_best(self, number: int) -> None:
        self.state.vectors["best"] = self._kept(number).vectors["parameters"].copy()

    async def _restore_best(self, path: str, group: str, is_there: bool) -> None:
        """Replace the best parameters by those of a snapshot, or forget them if it has none."""
        best, generation = None, self.generation
        if is_there:
            best = await self._beside(self._read_best, path, group)
            self._check(generation)  # it has read for a while
        await self._serve(self._set_best, best)

    def _read_best(self, path: str, group: str) -> np.ndarray:
        if self.cut_slice is not None:
            return checkpoint.read_segments(path, group, "best", self.cut_slice.segments)
        return checkpoint.read_slice(path, group, "best", self.start, self.stop)

    def _set_best(self, best: np.ndarray | None) -> None:
        self.state.vectors.pop("best", None)
        if best is not None:
            self.state.vectors["best"] = best

    async def _drop(self, number: int) -> None:
        """Forget a copy."""
        await self._serve(self.state.copies.pop, number, None)

    async def _drop_all(self) -> None:
        """Forget every copy: their readers have given up."""
        await self._serve(self.state.copies.clear)

    async def _close_epochs(self, epoch: int) -> None:
        """Forget the ledger of the epochs before `epoch`."""
        await self._serve(self.state.ledger.close_before, epoch)

    async def _assign(self, values: np.ndarray) -> None:
        """Replace the parameters."""
        await self._serve(np.copyto, self.state.vectors["parameters"], values)

    async def _adopt(self, rows: Sequence[Row], applied: int, first_open_epoch: int) -> int:
        """Take over the survivors' progress after a loss; return the updates lost by it."""
        ledger = Ledger.from_rows(rows, first_open_epoch)
        return await self._serve(self._take_progress, ledger, applied)

    def _take_progress(self, ledger: Ledger, applied: int) -> int:
        lost = applied - self.state.applied
        self.state.ledger, self.state.applied = ledger, applied
        return lost

    # Calls without a number: they change nothing here, and a repeat writes the same bytes

    async def write(self, path: str, group: str, number: int) -> bool:
        """Write a copy into its own chunk of a snapshot, on a thread that serves no calls.

        Returns whether the parameters are finite.
        """
        vectors = self._kept(number).vectors
        return await self._beside(self._write, path, group, vectors)

    async def write_vectors(self, path: str, group: str, names: Sequence[str]) -> bool:
        """Write vectors as they are, without a copy: nothing may change them meanwhile.

        The lock is not held, or a store that hangs would hold up every other call.
        Returns whether the parameters are finite.
        """
        vectors = {name: self._vector(name) for name in names}
        return await self._beside(self._write, path, group, vectors)

    def _write(self, path: str, group: str, vectors: dict[str, np.ndarray]) -> bool:
        own = (self.start, self.stop) if self.cut_slice is None else self.cut_slice.stored
        checkpoint.write_slice(path, group, *own, vectors)
        return all(is_finite(vectors["parameters"][part]) for part in self.trained)

    async def read(self, name: str) -> np.ndarray:
        """Return a copy of one vector: `parameters`, `best`, or an optimiser slot.

        It is float32 (stop - start,).

        Raises
        ------
        Stale
            The shard was made anew without the vector.
        """
        return await self._serve(lambda: self._vector(name).copy())

    async def whole_state(self) -> ShardState:
        """Return a consistent copy of everything, for a shard that takes this one's place.

        Commands under way end first. Otherwise the new shard could have the effect of a command
        without its answer.
        """
        await self.commands.ended()
        return await self._serve(self.state.everything)


def is_finite(values: np.ndarray) -> bool:
    """Return whether all of a vector, float32 (n,), is finite.

    Minimum and maximum pass NaN on, and need no memory.
    """
    return bool(np.isfinite(values.min(initial=0.0)) and np.isfinite(values.max(initial=0.0)))


def _within(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> list[slice]:
    """Return the parts of a slice of the flat vector that ranges cover, from the slice's start."""
    parts = [(max(a, start) - start, min(b, stop) - start) for a, b in ranges]
    return [slice(a, b) for a, b in parts if a < b]
