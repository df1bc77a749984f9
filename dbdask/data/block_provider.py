"""BlockProvider: the values that workers cannot read for themselves, brought to them by Dask.

Workers read stores on their own. The blocks of a dask-backed Dataset are computed by Dask on the
workers that need them; values in the client's memory are scattered to the workers, past the
scheduler. Both are futures, which the task that needs them takes as arguments::

    provider = BlockProvider(examples.recipe, client)
    futures = provider.futures(portion, workers=[address])
    client.submit(train, portion, futures, workers=[address])
    ...
    provider.release(portion)

    def train(portion, pieces):            # on the worker
        reader.minibatches(portion, batch_size, blocks=gather_blocks(pieces))
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future as Promise
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np
from dask._task_spec import GraphNode, Task, TaskRef, convert_legacy_graph
from dask.typing import Key
from distributed import Client, Future, rejoin, secede

from dbdask.data.dask_blocks import BlockCheck
from dbdask.data.routes import Blocked, Held, Piece
from dbdask.data.variables import Variable
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.portions import Portion

SCATTER_SECONDS = 5.0
"""How long values wait for a worker that the scheduler does not know: it has just left."""

_Name = tuple[int, int, tuple[int, ...]]


def why_cancelled(error: BaseException) -> str:
    """Return why Dask has cancelled a task, with the remedy if there is one."""
    reason = getattr(error, "reason", "unknown")
    if reason != "lost dependencies":
        return f"Dask cancelled its task (reason: {reason})"
    return (
        "Dask cancelled its task: persisted or scattered data that it needs are lost, and cannot "
        "be computed again; give the path of a store, or a Dataset that is not persisted"
    )


@contextmanager
def beside_task() -> Iterator[None]:
    """Give a worker's thread to other tasks while this waits, if it runs inside a Dask task.

    The results that it waits for need a thread, too, and this may be the only one.
    """
    has_left = leave_thread()
    try:
        yield
    finally:
        if has_left:
            rejoin()


def leave_thread() -> bool:
    """Leave the thread of the running task; return False if there is none, or it has left."""
    try:
        secede()
    except (ValueError, KeyError, AttributeError):
        return False
    return True


class Readable(Protocol):
    """Examples, as a provider uses them: every read that serving a block of the grid makes."""

    @property
    def variables(self) -> Sequence[Variable]: ...

    def reads(self, block: int) -> Iterable[tuple[Variable, Mapping[str, slice]]]: ...


@dataclass
class _Group:
    """The futures of one shuffle group, shared by the portions that are cut from it."""

    holders: set[tuple[int, int]]
    workers: frozenset[str]
    """To which its values were brought; none if to any."""
    brought: Promise[list[Future[Piece]]] = field(default_factory=Promise)

    def has(self, *states: str) -> bool:
        """Return whether a value is in one of the states; one under way is in none."""
        if not self.brought.done():
            return False
        if self.brought.exception() is not None:
            return "error" in states
        return any(future.status in states for future in self.brought.result())


class BlockProvider:
    """Makes the futures of the values that portions need, and drops them when released.

    Parameters
    ----------
    examples
        The examples, as the client holds them.
    client
        The client; its arrays go to the workers directly.

    Attributes
    ----------
    has_values
        Whether there are values that must be brought; if not, no portion has futures.
    """

    def __init__(self, examples: Readable, client: Client) -> None:
        self.has_values = any(variable.needs_blocks for variable in examples.variables)
        self._examples = examples
        self._client = client
        self._groups: dict[_Name, _Group] = {}
        self._graphs: dict[str, _Graph] = {}
        self._renamed = self._is_closed = False
        self._lock = Lock()
        self._building = Lock()

    def futures(
        self, portion: Portion, workers: Sequence[str] | None = None
    ) -> list[Future[Piece]]:
        """Return the futures that the portion's task takes; none if workers can read all.

        A second call for a portion brings its values again, so a lost worker loses nothing.
        """
        if not self.has_values:
            return []
        holder = (portion.epoch, portion.number)
        with self._lock:
            group, is_new = self._group(_name(portion), holder, frozenset(workers or ()))
        # The lock is not held while values travel: `release` may be called on the event loop
        # that moves them.
        if is_new:
            try:
                group.brought.set_result(self.bring(portion.blocks, workers))
            except BaseException as error:
                group.brought.set_exception(error)
                raise
        with self._lock:
            if self._is_closed:  # while values travelled: they are not needed any more
                self._groups.clear()
        return list(group.brought.result())

    def release(self, portion: Portion) -> None:
        """Release a portion; the values are dropped with the last portion of the group."""
        with self._lock:
            group = self._groups.get(_name(portion))
            if group is None:
                return
            self._note_failures(group)
            group.holders.discard((portion.epoch, portion.number))
            if not group.holders:
                del self._groups[_name(portion)]

    def lies_on(self, portion: Portion, workers: Collection[str]) -> bool:
        """Whether the portion's values were brought to some of these workers."""
        with self._lock:
            group = self._groups.get(_name(portion))
            return group is not None and not group.workers.isdisjoint(workers)

    def forget(self, workers: Collection[str]) -> None:
        """Bring values anew, when they are asked for again, that were brought to these workers.

        Tasks that compute them get new names: under the old ones they stay where they are.
        """
        with self._lock:
            names = [n for n, g in self._groups.items() if not g.workers.isdisjoint(workers)]
            for name in names:
                del self._groups[name]
            if names:
                self.rename()

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._is_closed = True
            self._groups.clear()
            self._graphs.clear()

    def bring(
        self, blocks: Iterable[int], workers: Sequence[str] | None = None
    ) -> list[Future[Piece]]:
        """Return futures of the values that blocks of the grid need; the caller holds them."""
        if not self.has_values:
            return []
        held: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Piece] = {}
        wanted: dict[_Graph, dict[tuple[int, ...], None]] = {}
        for block in blocks:
            for variable, box in self._examples.reads(block):
                if not variable.needs_blocks:
                    continue
                if isinstance(variable.origin, Held):
                    piece = _piece(variable, box)
                    held[piece.key, piece.starts, piece.values.shape] = piece
                else:
                    graph = self._graph(variable)
                    places = graph.overlapping(variable.index(box))
                    wanted.setdefault(graph, {}).update(dict.fromkeys(places))
        computed = [self._compute(graph, list(at), workers) for graph, at in wanted.items()]
        return self._scatter(list(held.values()), workers) + list(itertools.chain(*computed))

    def _group(
        self, name: _Name, holder: tuple[int, int], workers: frozenset[str]
    ) -> tuple[_Group, bool]:
        """Return the group of a portion, and whether its values must be brought."""
        group = self._groups.get(name)
        if group is not None:
            self._note_failures(group)
            if holder not in group.holders and not group.has("lost", "cancelled", "error"):
                group.holders.add(holder)
                return group, False
        holders = group.holders if group is not None else set()
        self._groups[name] = group = _Group(holders | {holder}, workers)
        return group, True

    def _note_failures(self, group: _Group) -> None:
        """Give tasks new names after an error: under its old name a held task stays failed."""
        if group.has("error"):
            self.rename()

    def rename(self) -> None:
        """Let the blocks that Dask computes from now on have new names."""
        self._graphs.clear()
        self._renamed = True

    def _scatter(self, pieces: list[Piece], workers: Sequence[str] | None) -> list[Future[Piece]]:
        if not pieces:
            return []
        # Fresh names: a future of the same values whose worker died must not be found again.
        return list(
            self._client.scatter(
                pieces,
                direct=True,
                hash=False,
                workers=list(workers) if workers else None,
                timeout=SCATTER_SECONDS,
            )
        )

    def _compute(
        self, graph: _Graph, places: list[tuple[int, ...]], workers: Sequence[str] | None
    ) -> list[Future[Piece]]:
        tasks, names = graph.tasks(places)
        # Other workers are allowed, else the death of one would leave its tasks waiting.
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
        with self._building:
            graph = self._graphs.get(variable.key)
            if graph is None:
                assert isinstance(variable.origin, Blocked)
                graph = _Graph(variable.key, variable.origin, renamed=self._renamed)
                self._graphs[variable.key] = graph
            return graph


class _Graph:
    """The task graph of one dask array, flattened once, from which blocks are taken by place."""

    def __init__(self, key: str, origin: Blocked, *, renamed: bool) -> None:
        array = origin.array
        self._key, self._check = key, origin.check
        self._name = array.name
        self._prefix = f"dbdask-{uuid.uuid4().hex}" if renamed else ""
        self._nodes = convert_legacy_graph(dict(array.__dask_graph__()))
        self._edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in array.chunks]

    def overlapping(self, index: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        """Return the places of the blocks that overlap the box."""
        spans = []
        for cut, edges in zip(index, self._edges, strict=True):
            first = int(np.searchsorted(edges, cut.start, side="right")) - 1
            last = int(np.searchsorted(edges, cut.stop, side="left"))
            spans.append([at for at in range(first, last) if edges[at] < edges[at + 1]])
        return itertools.product(*spans)

    def tasks(self, places: list[tuple[int, ...]]) -> tuple[dict[Key, GraphNode], list[Key]]:
        """Return the part of the graph that makes these blocks, as pieces, and their names.

        Names are new each time, so that a task that failed is not found again.
        """
        fresh = f"dbdask-piece-{uuid.uuid4().hex}"
        graph: dict[Key, GraphNode] = {}
        for place in places:
            self._collect((self._name, *place), graph)
        new: dict[Key, Key] = {
            key: (self._prefix, *_parts(key)) if self._prefix else key for key in graph
        }
        if self._prefix:
            # A substitute may be a node or a name: here all are names.
            names_or_nodes: dict[Key, Key | GraphNode] = {**new}
            graph = {
                new[key]: node.substitute(names_or_nodes, key=new[key])
                for key, node in graph.items()
            }
        names: list[Key] = []
        for place in places:
            block: Key = (self._name, *place)
            name: Key = (fresh, *place)
            box = self._box(place)
            check, made = self._check.for_box(box), TaskRef(new.get(block, block))
            graph[name] = Task(name, _as_piece, self._key, box, check, made)
            names.append(name)
        return graph, names

    def _box(self, place: tuple[int, ...]) -> tuple[slice, ...]:
        cuts = zip(self._edges, place, strict=True)
        return tuple(slice(int(edges[at]), int(edges[at + 1])) for edges, at in cuts)

    def _collect(self, wanted: Key, graph: dict[Key, GraphNode]) -> None:
        waiting = [wanted]
        while waiting:
            key = waiting.pop()
            # A persisted block is no node: the scheduler has it under its name.
            if key not in graph and key in self._nodes:
                graph[key] = self._nodes[key]
                waiting.extend(self._nodes[key].dependencies)


def gather_blocks(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Return the pieces that came with a task as the `blocks` that `Variable.read` takes."""
    blocks: dict[str, list[Piece]] = {}
    for piece in pieces:
        blocks.setdefault(piece.key, []).append(piece)
    return blocks


def _name(portion: Portion) -> _Name:
    return portion.epoch, portion.group, portion.blocks


def _parts(key: Key) -> tuple[Key, ...]:
    return key if isinstance(key, tuple) else (key,)


def _piece(variable: Variable, box: Mapping[str, slice]) -> Piece:
    index = variable.index(box)
    values = variable.read(box).view()
    # In-process workers are handed the user's own memory.
    values.flags.writeable = False
    return Piece(variable.key, tuple(cut.start for cut in index), values)


@portable_errors
def _as_piece(key: str, box: tuple[slice, ...], check: BlockCheck, block: object) -> Piece:
    """Return a block that was computed, as a piece; raise DataError if it cannot be right."""
    return Piece(key, tuple(cut.start for cut in box), check.apply(np.asarray(block), box))
