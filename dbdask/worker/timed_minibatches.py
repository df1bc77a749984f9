"""The minibatches of a portion, with the time for which a replica waits for them."""

from collections.abc import Iterable, Iterator

from dbdask.data.feed import Minibatch
from dbdask.metrics.time_spent import Spent


class TimedMinibatches:
    """The minibatches of a portion; the next one may be read before the loop asks for it.

    Parameters
    ----------
    batches
        The minibatches.
    spent
        Counts the seconds of reading.
    """

    def __init__(self, batches: Iterable[Minibatch], spent: Spent) -> None:
        self._batches, self._spent = iter(batches), spent
        self._ahead: list[Minibatch | None] = []  # at most one; None at the end

    def read_ahead(self) -> None:
        """Read the next minibatch, if it is not there yet."""
        if not self._ahead:
            with self._spent.on("reading"):
                self._ahead.append(next(self._batches, None))

    def __iter__(self) -> Iterator[Minibatch]:
        """Yield the minibatches, and note how long each was waited for."""
        while True:
            self.read_ahead()
            batch = self._ahead.pop()
            if batch is None:
                return
            yield batch
