"""Sweeps: one pass over all blocks, on the workers of a client if there is one, else here.

Results come in the order of the blocks, and are the same wherever they are computed.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypeVar

from dbdask.data.feed import Reader
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Blocks, Piece
from dbdask.errors import WorkerError

if TYPE_CHECKING:
    from distributed import Client, Future

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
    TypeError
        `client` is no Dask client.
    WorkerError
        Dask has cancelled a task of the pass.
    """
    batches = _batches(recipe)
    client = client if client is not None else _current_client()
    if client is not None and not hasattr(client, "submit"):
        raise TypeError(f"client must be a dask.distributed.Client, got {client!r}")
    if client is None:
        with Reader(recipe, cache_bytes=0, prefetch=False) as reader:
            for batch in batches:
                yield from (measure(reader, block, None) for block in batch)
    else:
        from dbdask.data.block_provider import beside_task

        with beside_task():
            yield from _sweep_on(client, recipe, measure, batches)


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


def _sweep_on(
    client: Client, recipe: Recipe, measure: Measure[T], batches: Iterable[tuple[int, ...]]
) -> Iterator[T]:
    """Keep two batches for each worker under way, with the values that it cannot read itself."""
    from dbdask.data.block_provider import BlockProvider

    recipe.check_values_are_here()
    provider = BlockProvider(recipe, client)
    small = recipe.worker_side()
    ahead = 2 * max(1, len(client.nthreads()))
    under_way: deque[Future[list[T]]] = deque()
    try:
        for batch in batches:
            pieces = provider.bring(batch)
            under_way.append(
                client.submit(_measure_batch, small, measure, batch, *pieces, pure=False)
            )
            if len(under_way) >= ahead:
                yield from _first_of(under_way)
        while under_way:
            yield from _first_of(under_way)
    finally:
        client.cancel(list(under_way))
        provider.close()


def _first_of(under_way: deque[Future[list[T]]]) -> list[T]:
    """Remove and return the first result; a failed future stays, and is cancelled later.

    Raises
    ------
    WorkerError
        Dask has cancelled its task.
    """
    from dbdask.data.block_provider import why_cancelled

    try:
        result: list[T] = under_way[0].result()
    except CancelledError as error:
        raise WorkerError(f"a pass over the data failed, because {why_cancelled(error)}") from error
    under_way.popleft()
    return result


def _measure_batch(
    recipe: Recipe, measure: Measure[T], batch: tuple[int, ...], *pieces: Piece
) -> list[T]:
    from dbdask.data.block_provider import gather_blocks

    blocks = gather_blocks(pieces)
    with Reader(recipe, cache_bytes=0, prefetch=False) as reader:
        return [measure(reader, block, blocks) for block in batch]
