"""A driver of parts in one process: it carries their messages, and counts them."""

import numpy as np


class Deadlock(Exception):
    """Parts wait for messages that no part will send."""


def drive(generators, rng=None):
    """Run generators of parts to their ends; return their values and the messages carried.

    A part may go on as soon as all its messages are there. Of those that may, `rng` draws one, so
    that parts run apart as far as they can. A message is (boundary, direction, sender, receiver,
    bytes).
    """
    rng = rng or np.random.default_rng(0)
    waiting, box, carried, values = {}, {}, [], [None] * len(generators)
    ready = list(range(len(generators)))
    while ready or waiting:
        if not ready:
            raise Deadlock({part: exchange[:2] for part, exchange in waiting.items()})
        part = ready.pop(rng.integers(len(ready)))
        try:
            exchange = next(generators[part])
        except StopIteration as end:
            values[part] = end.value
            continue
        waiting[part] = exchange
        for receiver, array in exchange.outgoing.items():
            address = (*exchange[:2], part, receiver)
            assert address not in box and receiver != part, address
            box[address] = array.copy()
            carried.append((*address, array.nbytes))
        for other in sorted(waiting):
            wanted = {s: (*waiting[other][:2], s, other) for s in waiting[other].incoming}
            if all(address in box for address in wanted.values()):
                for sender, into in waiting[other].incoming.items():
                    array = box.pop(wanted[sender])
                    assert array.shape == into.shape and array.dtype == into.dtype
                    into[...] = array
                del waiting[other]
                ready.append(other)
    assert not box, f"never fetched: {sorted(box)}"
    return values, carried


def poisoned(size, dtype=np.float64):
    """A vector that shows which elements were not overwritten."""
    return np.full(size, np.nan, dtype)
