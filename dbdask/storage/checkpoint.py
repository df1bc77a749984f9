"""The checkpoint: numbered snapshots of the flat vector in one Zarr group, complete when committed.

    run.zarr                     sealed: what the checkpoint is of
    run.zarr/owner               the run that writes to it, as long as it lives
    run.zarr/<snapshot>          sealed: its vectors; named after (number, generation, run)
    run.zarr/<snapshot>/<vector> a vector (parameters, optimiser slots), one chunk a shard
    run.zarr/<snapshot>/commit   sealed: the state of the run; the last key

Nothing is renamed: a reader takes the committed snapshot of the highest number and looks at
nothing else, so a writer that is late or died half way harms no reader. A run's numbers are above
all that were there when it began, and what is below a committed one is deleted after it. A commit
that comes later still, into a snapshot that was deleted, does not count. The state of a snapshot
names the last good one, which may be another, below it, and is kept (`dbdask.run.snapshots`).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from zarr.core.sync import sync

from dbdask.errors import CheckpointError
from dbdask.json_types import JsonObject
from dbdask.storage import owner, sealed
from dbdask.storage.cut_vectors import CutOrder, Segments, read_cut
from dbdask.storage.sealed import Place

logger = logging.getLogger("dbdask")

KIND = {"dbdask_checkpoint": 3}
VECTORS = {"dbdask_vectors": 2}
CUT_VECTORS = {"dbdask_vectors": 3}
"""Vectors of a cut model, which earlier versions would read in the wrong order."""

COMMIT = {"dbdask_commit": 2}
LAST_GOOD = "last_good"
SNAPSHOT = re.compile(r"(\d{8,})-\d+-\w+")


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot: where it is, and the state of the run that it holds."""

    path: Any  # a path, a URL or a Zarr store
    group: str
    number: int
    state: dict[str, Any]
    highest: int = 0  # number of a snapshot that was there when it was read, committed or not

    @property
    def last_good(self) -> str:
        """The group of the last snapshot that counts as good: this one, if it says no other."""
        return str(self.state.get(LAST_GOOD) or self.group)


@contextmanager
def _reading(path: Place) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"checkpoint={path!r} is damaged or out of reach: {error}; "
            "restore it from a copy, or delete it to start anew"
        ) from error


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Turn any error of a write into an error that names the checkpoint and the remedy.

    Raises
    ------
    CheckpointError
        The write has failed.
    """
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"checkpoint={path!r} cannot be written: {error!r}; give a path or URL that the "
            "client and every worker can write, with room for three snapshots"
        ) from error


def exists(path: Place) -> bool:
    """Return whether anything is at `path` besides an owner and keys that are being written.

    Raises
    ------
    CheckpointError
        The store cannot be reached.
    """
    try:
        names = sealed.children(path)
        others = [name for name in names if name != owner.GROUP and not sealed.is_partial(name)]
        return bool(others) if names else not sealed.is_empty(path)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint={path!r} cannot be reached: {error}; give a path or URL that the client "
            "and every worker can open"
        ) from error


def create(path: Place, attributes: dict[str, Any]) -> None:
    """Begin a checkpoint, if there is none: a group that says what it is of."""
    with writing(path):
        sealed.write(path, "", KIND, attributes)


def is_begun(path: Place) -> bool:
    """Whether a group is there that says what the checkpoint is of.

    Where that group was deleted, Zarr makes an empty one as soon as anything is written below it.
    """
    if sealed.holds(path, "zarr.json") and not sealed.is_bare(path):
        attributes(path)
        return True
    return False


def begin_anew(path: Place, attributes: dict[str, Any]) -> None:
    """Begin a checkpoint that was deleted; replace all that was written into it since."""
    with writing(path):
        sealed.replace_root(path, KIND, attributes)


def clear(path: Place) -> None:
    """Delete all of a checkpoint but the name of its owner; what it is of goes last."""
    with writing(path):
        for name in sorted(sealed.children(path), key="zarr.json".__eq__):
            if name != owner.GROUP:
                sealed.delete(path, name)


def attributes(path: Place) -> dict[str, Any]:
    """Return what a checkpoint is of.

    Raises
    ------
    CheckpointError
        `path` holds no checkpoint of this format, or a damaged one.
    """
    with _reading(path):
        try:
            return sealed.read(path, "", KIND)
        except (FileNotFoundError, sealed.OtherKind) as error:
            raise CheckpointError(
                f"checkpoint={path!r} holds something, but no checkpoint of this version: {error}; "
                "give another path, or restore it from a copy"
            ) from error


def name_of(number: int, generation: int, run: str) -> str:
    """Name a snapshot so that a late writer of another run or generation has another name."""
    return f"{number:08d}-{generation}-{run}"


def begin(
    path: Place,
    group: str,
    names: list[str],
    size: int,
    chunk: int,
    order: CutOrder | None = None,
) -> None:
    """Make the vectors of a snapshot, in chunks of `chunk` elements with checksums.

    `order` is that of the vectors of a cut model.
    """
    with writing(path):
        if order is None:
            write_vectors(path, group, VECTORS, names, size, chunk)
            return
        content = {"names": names, "size": size, "chunk": order.chunk, **order.table()}
        _make_vectors(path, group, CUT_VECTORS, content, order.stored_size)


def write_vectors(
    path: Place, group: str, kind: dict[str, Any], names: list[str], size: int, chunk: int
) -> None:
    """Make a group of empty vectors, which says how long and how cut they are."""
    content = {"names": names, "size": size, "chunk": chunk}
    _make_vectors(path, group, kind, content, size)


def _make_vectors(
    path: Place, group: str, kind: JsonObject, content: JsonObject, stored_size: int
) -> None:
    sealed.write(path, group, kind, content)
    for name in content["names"]:
        place = f"{group}/{name}".lstrip("/")
        sealed.make_vector(path, place, stored_size, content["chunk"])


def write_slice(
    path: Place, group: str, start: int, stop: int, vectors: dict[str, np.ndarray]
) -> None:
    """Write one shard's slice of every vector, float32 (n,): whole chunks, filled up with zeros.

    Raises
    ------
    CheckpointError
        The slice cannot be written.
    """
    with writing(path):
        for name, vector in vectors.items():
            sealed.write_slice(path, f"{group}/{name}", start, stop, vector)


def is_whole(path: Place, group: str, names: Sequence[str], chunks: int) -> bool:
    """Whether every key of a snapshot is there, but for its commit."""
    slices = {f"{group}/{name}/c/{number}" for name in names for number in range(chunks)}
    with _reading(path):
        return slices | _headers(group, names) <= sealed.keys(path, group)


def has_vectors(path: Place, group: str, names: Sequence[str]) -> bool:
    """Whether the vectors of a snapshot were made and are still there."""
    with _reading(path):
        return _headers(group, names) <= sealed.keys(path, group)


def _headers(group: str, names: Sequence[str]) -> set[str]:
    return {f"{group}/zarr.json", *(f"{group}/{name}/zarr.json" for name in names)}


def commit(path: Place, group: str, state: dict[str, Any]) -> None:
    """Put the one key that makes a snapshot count."""
    with writing(path):
        sealed.write(path, f"{group}/commit", COMMIT, state)


def latest(path: Place) -> Snapshot | None:
    """Return the committed snapshot of the highest number; None if none was committed yet.

    Raises
    ------
    CheckpointError
        Snapshots were committed, and none can be read any more.
    """
    with _reading(path):
        names = snapshots(path)
        trouble = None
        for group in reversed(names):
            try:
                state = _state_of(path, group)
            except ValueError as error:
                # A writer may have died within its commit: then the one before still counts.
                logger.warning("the commit of snapshot %s cannot be read: %s", group, error)
                trouble = trouble or error
                continue
            if state is not None:
                return Snapshot(path, group, number_of(group), state, number_of(names[-1]))
        if trouble is not None:
            raise ValueError(f"no commit can be read: {trouble}")
        # A run's second snapshot is begun when its first is committed.
        if any(number_of(group) > 1 for group in names):
            raise ValueError(f"it holds {', '.join(names)}, and their commits are missing")
        return None


def is_committed(path: Place, group: str) -> bool:
    """Whether a snapshot is there, with a commit that can be read."""
    with _reading(path):
        try:
            return _state_of(path, group) is not None
        except ValueError as error:
            logger.warning("the commit of snapshot %s cannot be read: %s", group, error)
            return False


def _state_of(path: Place, group: str) -> dict[str, Any] | None:
    """The state that a snapshot was committed with; None if it was not committed."""
    try:
        state = sealed.read(path, f"{group}/commit", COMMIT)
    except FileNotFoundError:
        return None
    try:
        _vectors(path, group)
    except (FileNotFoundError, sealed.OtherKind) as error:
        raise ValueError("the snapshot was deleted before its commit came") from error
    return state


def snapshots(path: Place) -> list[str]:
    """The snapshots that are there, committed or not; the highest number last."""
    return [name for name in sealed.children(path) if SNAPSHOT.fullmatch(name)]


def number_of(group: str) -> int:
    """The number of a snapshot."""
    return int(group.split("-")[0])


def read_slice(path: Place, group: str, name: str, start: int, stop: int) -> np.ndarray:
    """Read a slice of one vector of a snapshot: float32 (stop - start,), in the model's order.

    Any cut may have written the snapshot.

    Raises
    ------
    CheckpointError
        The checkpoint is damaged, or cannot be reached.
    """
    return VectorReference(path, group, name).read(start, stop)


def read_segments(path: Place, group: str, name: str, segments: Segments) -> np.ndarray:
    """Read ranges of one vector of a snapshot, one after the other: float32 (sum of lengths,).

    Any cut may have written the snapshot. The second number of a segment is where it begins in the
    model's vector, the third is its length.

    Raises
    ------
    CheckpointError
        The checkpoint is damaged, or cannot be reached.
    """
    return np.concatenate(
        [read_slice(path, group, name, whole, whole + length) for _, whole, length in segments]
    )


def _vectors(path: Place, group: str) -> JsonObject:
    """Return what a snapshot says of its vectors."""
    try:
        return sealed.read(path, group, VECTORS)
    except sealed.OtherKind as error:
        try:
            return sealed.read(path, group, CUT_VECTORS)
        except sealed.OtherKind:
            raise error from None


def vector_names(path: Place, group: str) -> list[str]:
    """List the vectors of a snapshot."""
    with _reading(path):
        return sorted(_vectors(path, group)["names"])


def delete(path: Place, group: str) -> None:
    """Delete a snapshot; its commit goes first, so no reader sees half of it."""
    store = sealed.open_store(path)
    sync(store.delete(f"{group}/commit/zarr.json"))
    sync(store.delete_dir(group))


def is_older(group: str, number: int) -> bool:
    """Whether a snapshot is below that of a number."""
    return number_of(group) < number


def delete_all(path: Place, groups: list[str]) -> None:
    """Delete snapshots that are listed from the lowest number on.

    So a reader that listed them before finds the highest that is left. A snapshot that cannot be
    deleted is logged: it costs space, and goes with the next commit.
    """
    for group in groups:
        try:
            delete(path, group)
        except Exception as error:
            logger.warning("old snapshot %s could not be deleted: %r", group, error)


@dataclass(frozen=True)
class VectorReference:
    """A vector of a committed snapshot, or of a saved result: read when it is wanted.

    Its elements are in the order of the model; any cut may have written it.
    """

    path: Place
    group: str
    name: str = "parameters"

    argument: ClassVar[str] = "checkpoint"
    """Names the path in errors."""

    error: ClassVar[type[Exception]] = CheckpointError
    """The type of the error if the vector cannot be read."""

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read a slice, or the whole vector: float32 (stop - start,).

        Raises
        ------
        CheckpointError
            The checkpoint is damaged, or cannot be reached.
        """
        with _reading(self.path):
            return self._read(start, stop)

    def _read(self, start: int, stop: int | None) -> np.ndarray:
        vectors = _vectors(self.path, self.group)
        size, chunk = vectors["size"], vectors["chunk"]
        path = f"{self.group}/{self.name}".lstrip("/")
        stop = size if stop is None else stop
        if "order" in vectors:
            return read_cut(self.path, path, vectors, start, stop)
        return sealed.read_slice(self.path, path, start, stop, size, chunk)
