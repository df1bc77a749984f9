"""What is left out: examples with a missing value, by the block of data that holds them."""

from dataclasses import dataclass, field


@dataclass
class Fills:
    """Chunks of one variable that are not in its store, and were read as its fill value.

    Parameters
    ----------
    total
        Chunks that the variable has.
    chunks
        Numbers of those that are not there.
    """

    total: int
    chunks: set[int] = field(default_factory=set)


@dataclass
class LeftOut:
    """What the blocks that were read leave out; taking in a block again changes nothing.

    Parameters
    ----------
    total
        Examples in all blocks, those included that were not read.
    rows
        Examples of each block that was read, by its number.
    missing
        Those of them that are left out because a value is missing, where there are some.
    places
        Where the first missing value of a block is; of several blocks, of the first.
    kept
        The classes of which an example is left: bit `n` is class `n`.
    lost
        The labels of classes, by number, of which a block has examples and leaves out all.
    fills
        What of each variable is not in the store, where there is something.

    Examples
    --------
    >>> found = LeftOut(10, {0: 6}, {0: 2}, {0: "x at time=3"}, kept=0b01, lost={1: "fog"})
    >>> found.add(LeftOut(10, {1: 4}, kept=0b10))
    >>> found.add(LeftOut(10, {1: 4}, kept=0b10))
    >>> found.rows_read, found.count, found.first_place, found.lost_classes
    (10, 2, 'x at time=3', ())
    """

    total: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    missing: dict[int, int] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    lost: dict[int, object] = field(default_factory=dict)
    fills: dict[str, Fills] = field(default_factory=dict)

    def add(self, other: "LeftOut") -> None:
        """Take in what other blocks, or the same ones, leave out."""
        self.total = max(self.total, other.total)
        self.rows.update(other.rows)
        self.missing.update(other.missing)
        self.places.update(other.places)
        if self.places:  # a text for each block would be much, and only the first is told
            first = min(self.places)
            self.places = {first: self.places[first]}
        self.kept |= other.kept
        self.lost.update(other.lost)
        for name, fills in other.fills.items():
            self.fills.setdefault(name, Fills(fills.total)).chunks.update(fills.chunks)

    @property
    def rows_read(self) -> int:
        """Examples in the blocks that were read."""
        return sum(self.rows.values())

    @property
    def count(self) -> int:
        """Examples left out because a value is missing."""
        return sum(self.missing.values())

    @property
    def first_place(self) -> str:
        """Where the first missing value is; empty where there is none."""
        return self.places[min(self.places)] if self.places else ""

    @property
    def lost_classes(self) -> tuple[object, ...]:
        """Labels of which no example is left; none before every block was read."""
        if self.rows_read < self.total:
            return ()
        return tuple(self.lost[n] for n in sorted(self.lost) if not self.kept >> n & 1)
