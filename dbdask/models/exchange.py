"""Messages that the parts of a network exchange, and that a part asks its caller to carry.

A part's work is a generator. If it needs its peers it yields an `Exchange`, and its
driver carries the messages: a test in one process, a worker over a transport. The mathematics knows
neither.
"""

from collections.abc import Generator
from typing import Literal, NamedTuple, TypeVar

from dbdask.arrays import FloatArray

Direction = Literal["forward", "backward", "loss", "decision"]

Value = TypeVar("Value")


class Exchange(NamedTuple):
    """One meeting of a part with its peers.

    The driver hands every array of `outgoing` to its receiver, and fills every array of `incoming`
    in place with what its sender has for this part under the same `boundary` and `direction`. Then
    it resumes the generator, which may overwrite what it has sent. Of each (sender, receiver,
    boundary, direction) there is one message a step.

    Parameters
    ----------
    boundary
        The layer whose input crosses; 0 for "loss" and "decision".
    direction
        "forward" for activations, "backward" for gradients, "loss" and "decision" for scalars.
    outgoing
        Arrays by receiver; any strides, not to be written to.
    incoming
        Arrays by sender, of the shape of the sender's.
    """

    boundary: int
    direction: Direction
    outgoing: dict[int, FloatArray]
    incoming: dict[int, FloatArray]


Exchanging = Generator[Exchange, None, Value]
"""Work of a part that yields its exchanges and returns a value."""
