"""The stream of portions: which one a worker gets next. Pure bookkeeping, without Dask."""

from collections.abc import Callable, Iterable, Sequence

from dbdask.numbers.portions import Portion

Identity = tuple[int, int]  # epoch, number


class PortionStream:
    """Hands out every portion of every epoch until each is finished.

    Parameters
    ----------
    portions_of
        The portions of an epoch, in their seeded order.
    epochs
        Epochs in all.
    first_epoch, finished
        Where an earlier run stopped: its epoch, and the portions of it that are finished.
    """

    def __init__(
        self,
        portions_of: Callable[[int], Sequence[Portion]],
        epochs: int,
        first_epoch: int = 0,
        finished: Iterable[Identity] = (),
    ) -> None:
        self._portions_of = portions_of
        self.epochs = epochs
        self.epoch = first_epoch
        self._group_of: dict[str, int] = {}
        self._next_of: dict[str, int] = {}  # the group that a worker was told to read ahead
        self._out: dict[Identity, Portion] = {}
        self.finished: set[Identity] = set(finished)
        self._pending = self._open(first_epoch)

    def _open(self, epoch: int) -> list[Portion]:
        if epoch >= self.epochs:
            return []
        portions = self._portions_of(epoch)
        return [p for p in portions if (p.epoch, p.number) not in self.finished]

    def take(self, worker: str) -> Portion | None:
        """Hand a portion to a worker: of its own shuffle group, else of one that nobody has."""
        if not self._pending:
            return None
        portion = self._pending.pop(self._choose(worker))
        self._group_of[worker] = portion.group
        self._next_of.pop(worker, None)
        self._out[portion.epoch, portion.number] = portion
        return portion

    def _choose(self, worker: str) -> int:
        """Position of the worker's next portion: the one of least cost to read, then the first."""
        mine, ahead = self._group_of.get(worker), self._next_of.get(worker)
        others = [*self._group_of.items(), *self._next_of.items()]
        taken = {group for name, group in others if name != worker}

        found: dict[str, int] = {}  # the first position of each kind
        for position, portion in enumerate(self._pending):
            if portion.group == mine:
                return position
            kind = "ahead" if portion.group == ahead else "free"
            found.setdefault("taken" if portion.group in taken else kind, position)
        return next(found[kind] for kind in ("ahead", "free", "taken") if kind in found)

    def following(self, worker: str) -> Portion | None:
        """Say what the worker gets next, so that it may begin to read; others leave it alone."""
        if not self._pending:
            return None
        portion = self._pending[self._choose(worker)]
        self._next_of[worker] = portion.group
        return portion

    def hand_back(self, portion: Portion) -> None:
        """Take an unfinished portion back; it is the next to be handed out."""
        identity = portion.epoch, portion.number
        if self._out.pop(identity, None) is not None and identity not in self.finished:
            self._pending.append(portion)
            self._pending.sort(key=lambda p: (p.epoch, p.number))

    def finish(self, portion: Portion) -> bool:
        """Note that a portion is finished; False where it was already."""
        identity = portion.epoch, portion.number
        self._pending = [p for p in self._pending if (p.epoch, p.number) != identity]
        self._out.pop(identity, None)
        if identity in self.finished:
            return False
        self.finished.add(identity)
        return True

    @property
    def epoch_finished(self) -> bool:
        """Whether every portion of the current epoch is finished."""
        return not self._pending and not self._out

    @property
    def done(self) -> bool:
        """Whether every epoch is finished."""
        return self.epoch >= self.epochs

    def next_epoch(self) -> None:
        """Open the next epoch and forget the portions of the one before."""
        assert self.epoch_finished
        self.epoch += 1
        self.finished = {identity for identity in self.finished if identity[0] >= self.epoch}
        self._forget_groups()
        self._pending = self._open(self.epoch)

    def _forget_groups(self) -> None:
        self._group_of.clear()
        self._next_of.clear()

    def restart(self, epoch: int, finished: Iterable[Identity]) -> None:
        """Go back to where a checkpoint stood."""
        self.epoch, self.finished = epoch, set(finished)
        self._out.clear()
        self._forget_groups()
        self._pending = self._open(epoch)
