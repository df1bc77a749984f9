"""Examples that are left out because a value is missing, by the block that holds them."""

from dataclasses import dataclass, field


@dataclass
class Fills:
    """Chunks of one variable that are not in its store, and were read as its fill value.

    Parameters
    ----------
    total
        Chunks that the variable has.
    chunks
        Numbers of the chunks that are not in the store.
    """

    total: int
    chunks: set[int] = field(default_factory=set)


@dataclass
class LeftOut:
    """The examples that blocks leave out; adding the same block again changes nothing.

    Parameters
    ----------
    total
        Examples in all blocks, also in those that were not read.
    rows
        Examples of each block that was read, by its number.
    missing
        Examples of a block that are left out because a value is missing; blocks without any are
        not in it.
    places
        Where the first missing value of a block is; of several blocks, of the first one only.
    kept
        The classes of which an example is left: bit `n` is class `n`.
    lost
        The labels of classes, by number, of which a block has examples and leaves out all.
    fills
        The missing chunks of each variable; variables without any are not in it.

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
        """Add the examples that other blocks, or the same ones, leave out."""
        self.total = max(self.total, other.total)
        self.rows.update(other.rows)
        self.missing.update(other.missing)
        self.places.update(other.places)
        if self.places:  # a text for each block would be large, and only the first is reported
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
        """Where the first missing value is; empty if there is none."""
        return self.places[min(self.places)] if self.places else ""

    @property
    def lost_classes(self) -> tuple[object, ...]:
        """Labels of which no example is left; empty before every block was read."""
        if self.rows_read < self.total:
            return ()
        return tuple(self.lost[n] for n in sorted(self.lost) if not self.kept >> n & 1)
