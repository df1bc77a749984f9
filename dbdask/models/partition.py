"""How a run cuts its model into parts, and where the parts' parameters are."""

from dataclasses import dataclass, field

from dbdask.arrays import FloatArray
from dbdask.models.cut import Cut, Rows, even_cut
from dbdask.models.cut_choice import best_cut
from dbdask.models.cut_table import CutTable, cut_table, part_ranges
from dbdask.models.network import Network

MOST_COMPARED = 64
"""Parts, for which even cuts are compared: for more the comparison takes longer than it saves."""


@dataclass(frozen=True)
class Partition:
    """A cut of a network, with the order of the parameters that follows from it.

    Parameters
    ----------
    network
        The whole network.
    cut
        Which rows of its layers each part computes.
    """

    network: Network
    cut: Cut
    table: CutTable = field(init=False, repr=False, compare=False)
    """The order of the cut vector."""
    ranges: tuple[Rows, ...] = field(init=False, repr=False, compare=False)
    """The range of the cut vector that holds each part's parameters."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", cut_table(self.network, self.cut))
        object.__setattr__(self, "ranges", part_ranges(self.network, self.cut))

    @property
    def parts(self) -> int:
        """Number of parts."""
        return self.cut.parts

    @property
    def largest(self) -> int:
        """Parameters of the part that has most."""
        return max(stop - start for start, stop in self.ranges)

    def to_whole(self, vector: FloatArray) -> FloatArray:
        """Return a cut vector, float (size,), in the order of the network's own layout."""
        return self.table.to_whole(vector)


def partition_of(model: object, parts: int, examples: int) -> Partition | None:
    """Return how a model is cut into parts; None for one part.

    Parameters
    ----------
    model
        The model; a `Network` can be cut.
    parts
        How many.
    examples
        Of a minibatch: they decide which of several even cuts takes least time.

    Raises
    ------
    ValueError
        The model cannot be cut into so many parts; the message says why, and what can be done.

    Examples
    --------
    >>> partition_of(object(), 1, 100)
    >>> partition_of("a model", 2, 100)
    Traceback (most recent call last):
    ValueError: partitions must be 1 for a model that cannot be cut into parts, got 2 for a str: \
only dbdask.Network can be cut
    """
    if parts == 1:
        return None
    network = _network_to_cut(model, parts)
    try:
        many = parts > MOST_COMPARED
        return Partition(
            network, even_cut(network, parts) if many else best_cut(network, parts, examples)
        )
    except ValueError as error:
        raise ValueError(f"partitions={parts} cannot cut the model: {error}") from error


def can_be_cut(model: object, parts: int) -> bool:
    """Whether a model can be cut into so many parts.

    Examples
    --------
    >>> from dbdask.models.layers import Dense
    >>> network = Network(input_shape=3, layers=[Dense(4)], loss="softmax")
    >>> can_be_cut(network, 4), can_be_cut(network, 5), can_be_cut("a model", 2)
    (True, False, False)
    """
    try:
        even_cut(_network_to_cut(model, parts), parts)
    except ValueError:
        return False
    return True


def _network_to_cut(model: object, parts: int) -> Network:
    """Return the model, which is a network that may be cut.

    Raises
    ------
    ValueError
        It is none.
    """
    if not isinstance(model, Network):
        raise ValueError(
            "partitions must be 1 for a model that cannot be cut into parts, got "
            f"{parts} for a {type(model).__name__}: only dbdask.Network can be cut"
        )
    if model.layout.trained != ((0, model.layout.size),):
        raise ValueError(
            f"partitions must be 1 for a network of layers with buffers, which no part may change "
            f"alone, got {parts}"
        )
    return model
