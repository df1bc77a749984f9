"""Sweeps: one pass over all blocks, on the workers of a client if there is one, else here.

Results come in the order of the blocks, and are the same wherever they are computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from dbdask.data.feed import Reader
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Blocks

if TYPE_CHECKING:
    from distributed import Client

BATCH_BYTES = 64 * 2**20
"""Stored bytes of the blocks of one task."""

T = TypeVar("T")

Measure = Callable[[Reader, int, Blocks | None], T]


def sweep(recipe: Recipe, measure: Measure[T], client: Client | None = None) -> Iterator[T]:
    """Yield `measure(reader, block, blocks)` of every block that holds examples, in order.

    Parameters
    ----------
    recipe
        The recipe of the examples, as the client holds it.
    measure
        Travels pickled to the workers. `blocks` has the values that they cannot read themselves.
    client
        None: the current client, else this process.

    Raises
    ------
    TypeError, ValueError
        `client` is no Dask client, an asynchronous one, or closed.
    WorkerError, StoreFailed
        As `cluster_sweeps.sweep_on` says.
    """
    batches = _batches(recipe)
    client = client if client is not None else _current_client()
    if client is None:
        with Reader(recipe, cache_bytes=0, prefetch=False) as reader:
            for batch in batches:
                yield from (measure(reader, block, None) for block in batch)
    else:
        from dbdask.data.block_provider import beside_task
        from dbdask.data.cluster_sweeps import sweep_on
        from dbdask.rpc.clients import check_client

        check_client(client)
        with beside_task():
            yield from sweep_on(client, recipe, measure, batches)


def _batches(recipe: Recipe) -> Iterator[tuple[int, ...]]:
    batch: list[int] = []
    held = 0.0
    for block in map(int, recipe.block_rows.nonzero()[0]):
        batch.append(block)
        held += recipe.grid.rows(block) * recipe.row_bytes
        if held >= BATCH_BYTES:
            yield tuple(batch)
            batch, held = [], 0.0
    if batch:
        yield tuple(batch)


def _current_client() -> Client | None:
    """Return the current client; None if there is none, or distributed was never imported."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        current: Client = distributed.default_client()
        return current
    except ValueError:
        return None
