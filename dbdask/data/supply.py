"""Supply: the values that workers cannot read for themselves, brought to them by Dask.

Workers read stores on their own. The blocks of a dask-backed Dataset are computed by Dask, where
they are needed; what is in the client's memory is scattered to the workers, past the scheduler.
Either way they are futures, which the task that needs them takes as arguments::

    supply = Supply(examples, client)
    futures = supply.futures(portion, workers=[address])
    client.submit(train, portion, futures, workers=[address])
    ...
    supply.release(portion)

    def train(portion, pieces):            # on the worker
        reader.minibatches(portion, batch_size, blocks=gather_blocks(pieces))
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol

import numpy as np
from dask._task_spec import convert_legacy_graph
from distributed import Client, Future

from dbdask.data.routes import Blocked, Held, Piece
from dbdask.data.variables import Variable
from dbdask.numbers.portions import Portion


class Readable(Protocol):
    """What supply asks of examples: every read that serving a block of the grid makes."""

    def reads(self, block: int) -> Iterable[tuple[Variable, Mapping[str, slice]]]: ...


@dataclass
class _Group:
    """The futures of one shuffle group, shared by the portions that are cut from it."""

    futures: list[Future]
    holders: set[tuple[int, int]] = field(default_factory=set)

    @property
    def is_whole(self) -> bool:
        return not any(future.status in ("lost", "cancelled", "error") for future in self.futures)


class Supply:
    """Futures of what portions need, made when asked for and dropped when released.

    Parameters
    ----------
    examples
        The examples, as the client holds them.
    client
        The client; its arrays go to the workers directly.
    """

    def __init__(self, examples: Readable, client: Client) -> None:
        self._examples = examples
        self._client = client
        self._groups: dict[tuple[int, int, tuple[int, ...]], _Group] = {}
        self._graphs: dict[str, _Graph] = {}
        self._lock = RLock()

    def futures(self, portion: Portion, workers: Sequence[str] | None = None) -> list[Future]:
        """Return the futures that the portion's task takes; none where workers can read.

        Asking again for a portion brings its values afresh: a lost worker loses nothing.
        """
        name = (portion.epoch, portion.group, portion.blocks)
        holder = (portion.epoch, portion.number)
        with self._lock:
            group = self._groups.get(name)
            if group is None or holder in group.holders or not group.is_whole:
                holders = group.holders if group else set()
                group = _Group(self.bring(portion.blocks, workers), holders)
                self._groups[name] = group
            group.holders.add(holder)
            return list(group.futures)

    def release(self, portion: Portion) -> None:
        """Drop what the portion held; the last of its group drops the values themselves."""
        name = (portion.epoch, portion.group, portion.blocks)
        with self._lock:
            group = self._groups.get(name)
            if group is not None:
                group.holders.discard((portion.epoch, portion.number))
                if not group.holders:
                    del self._groups[name]

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._groups.clear()
            self._graphs.clear()

    def bring(self, blocks: Iterable[int], workers: Sequence[str] | None = None) -> list[Future]:
        """Return futures of what these blocks of the grid need; the caller holds them."""
        held: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Piece] = {}
        wanted: dict[str, dict[tuple[int, ...], None]] = {}
        for block in blocks:
            for variable, box in self._examples.reads(block):
                if not variable.needs_blocks:
                    continue
                if isinstance(variable.origin, Held):
                    piece = _piece(variable, box)
                    held[piece.key, piece.starts, piece.values.shape] = piece
                else:
                    places = self._graph(variable).overlapping(variable.index(box))
                    wanted.setdefault(variable.key, {}).update(dict.fromkeys(places))
        computed = [self._compute(key, list(places), workers) for key, places in wanted.items()]
        return self._scatter(list(held.values()), workers) + list(itertools.chain(*computed))

    def _scatter(self, pieces: list[Piece], workers: Sequence[str] | None) -> list[Future]:
        if not pieces:
            return []
        # Fresh names: a future of the same values whose worker died must not be found again.
        return list(
            self._client.scatter(
                pieces, direct=True, hash=False, workers=list(workers) if workers else None
            )
        )

    def _compute(
        self, key: str, places: list[tuple[int, ...]], workers: Sequence[str] | None
    ) -> list[Future]:
        tasks, names = self._graphs[key].tasks(places)
        # The workers are a wish: were they a rule, the death of one would leave its tasks waiting.
        return list(
            self._client.get(
                tasks,
                names,
                workers=list(workers) if workers else None,
                allow_other_workers=bool(workers),
                sync=False,
            )
        )

    def _graph(self, variable: Variable) -> _Graph:
        if variable.key not in self._graphs:
            assert isinstance(variable.origin, Blocked)
            self._graphs[variable.key] = _Graph(variable.key, variable.origin.array)
        return self._graphs[variable.key]


class _Graph:
    """The task graph of one dask array, flattened once, from which blocks are taken by place."""

    def __init__(self, key: str, array: Any) -> None:
        self._key = key
        self._name = array.name
        self._nodes = convert_legacy_graph(dict(array.__dask_graph__()))
        self._edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in array.chunks]

    def overlapping(self, index: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        """Return the places of the blocks that share a value with the box."""
        spans = []
        for cut, edges in zip(index, self._edges, strict=True):
            first = int(np.searchsorted(edges, cut.start, side="right")) - 1
            last = int(np.searchsorted(edges, cut.stop, side="left"))
            spans.append([at for at in range(first, last) if edges[at] < edges[at + 1]])
        return itertools.product(*spans)

    def tasks(self, places: list[tuple[int, ...]]) -> tuple[dict[Any, Any], list[Any]]:
        """Return the part of the graph that makes these blocks, as pieces, and their names.

        Names are fresh each time: what failed once must not be found again.
        """
        fresh = f"dbdask-piece-{uuid.uuid4().hex}"
        graph: dict[Any, Any] = {}
        names = []
        for place in places:
            block = (self._name, *place)
            self._collect(block, graph)
            name = (fresh, *place)
            starts = tuple(int(edges[at]) for edges, at in zip(self._edges, place, strict=True))
            graph[name] = (_as_piece, self._key, starts, block)
            names.append(name)
        return convert_legacy_graph(graph), names

    def _collect(self, wanted: Any, graph: dict[Any, Any]) -> None:
        waiting = [wanted]
        while waiting:
            key = waiting.pop()
            if key not in graph:
                graph[key] = self._nodes[key]
                waiting.extend(self._nodes[key].dependencies)


def gather_blocks(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Return the pieces that came with a task as the `blocks` that `Variable.read` takes."""
    blocks: dict[str, list[Piece]] = {}
    for piece in pieces:
        blocks.setdefault(piece.key, []).append(piece)
    return blocks


def _piece(variable: Variable, box: Mapping[str, slice]) -> Piece:
    index = variable.index(box)
    values = variable.read(box).view()
    # In-process workers are handed the user's own memory.
    values.flags.writeable = False
    return Piece(variable.key, tuple(cut.start for cut in index), values)


def _as_piece(key: str, starts: tuple[int, ...], block: Any) -> Piece:
    return Piece(key, starts, np.asarray(block))
