"""A part's side of the boundary below a layer: rows that it takes from peers, and gives them."""

from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.models.cut import Crossing, Rows, overlap
from dbdask.models.exchange import Exchange, Exchanging


@dataclass(frozen=True)
class Boundary:
    """The rows of a layer's input that a part owns and needs, and the rows that it exchanges.

    Parameters
    ----------
    layer
        The layer.
    owned
        Rows of its input that the part has computed.
    needed
        Rows of its input that the part's share of the layer depends on.
    outgoing, incoming
        In the forward pass; backward, the gradient at these rows goes the other way.
    """

    layer: int
    owned: Rows
    needed: Rows
    outgoing: tuple[Crossing, ...] = ()
    incoming: tuple[Crossing, ...] = ()

    def forward(self, own: Float32Array) -> Exchanging[Float32Array]:
        """Return the rows that are needed, float32 (examples, rows, ...), from the rows owned.

        They are a view of `own` if no row comes from a peer.
        """
        kept = overlap(self.owned, self.needed)
        if not self.incoming:
            given = own[:, _inside(kept, self.owned)]
        else:
            given = _of_rows(own, self.needed)
            given[:, _inside(kept, self.needed)] = own[:, _inside(kept, self.owned)]
        if self.outgoing or self.incoming:
            yield Exchange(
                self.layer,
                "forward",
                {c.receiver: own[:, _inside((c.first, c.last), self.owned)] for c in self.outgoing},
                {
                    c.sender: given[:, _inside((c.first, c.last), self.needed)]
                    for c in self.incoming
                },
            )
        return given

    def backward(self, below: Float32Array) -> Exchanging[Float32Array]:
        """Return the gradient at the rows owned, from `below`, the gradient at the rows needed.

        Both are float32 (examples, rows, ...). Other parts send theirs at the rows that they
        needed; the sum is taken in the order of the parts. The sum may be a view of `below`, which
        is overwritten.
        """
        shares = {c.receiver: _of_rows(below, (c.first, c.last)) for c in self.outgoing}
        if self.outgoing or self.incoming:
            yield Exchange(
                self.layer,
                "backward",
                {
                    c.sender: below[:, _inside((c.first, c.last), self.needed)]
                    for c in self.incoming
                },
                dict(shares),
            )
        kept = overlap(self.owned, self.needed)
        if kept == self.owned:
            total = below[:, _inside(kept, self.needed)]
        else:
            total = _of_rows(below, self.owned)
            total[...] = 0
            total[:, _inside(kept, self.owned)] = below[:, _inside(kept, self.needed)]
        for crossing in self.outgoing:
            rows = _inside((crossing.first, crossing.last), self.owned)
            total[:, rows] += shares[crossing.receiver]
        return total


def _of_rows(like: Float32Array, rows: Rows) -> Float32Array:
    """Return a new array of some rows, (examples, rows, ...), in the memory order of another."""
    return np.empty_like(like, shape=(len(like), rows[1] - rows[0], *like.shape[2:]))


def _inside(rows: Rows, of: Rows) -> slice:
    """Return the place of a range of rows in an array that holds a larger range."""
    if rows[0] == rows[1]:
        return slice(0, 0)
    return slice(rows[0] - of[0], rows[1] - of[0])
