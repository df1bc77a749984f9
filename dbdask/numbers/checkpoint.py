"""The checkpoint: numbered snapshots of the flat vector in one Zarr group, complete when committed.

    run.zarr                     attributes: format, model, layout, run
    run.zarr/<snapshot>          one group a snapshot, named after (number, generation, run)
    run.zarr/<snapshot>/<vector> a vector (parameters, optimiser slots), one chunk a shard
    run.zarr/<snapshot>/commit   a group whose attributes are the state of the run: the last key

Nothing is renamed: a reader takes the committed snapshot of the highest number and looks at
nothing else, so a writer that is late or died half way disturbs nobody.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from dbdask.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot: where it is, and the state of the run that it holds."""

    path: str
    group: str
    number: int
    state: dict[str, Any]


def exists(path: str) -> bool:
    """Whether anything of Zarr lies at `path`."""
    try:
        zarr.open(path, mode="r")
    except (FileNotFoundError, zarr.errors.NodeNotFoundError):
        return False
    return True


def create(path: str, attributes: dict[str, Any]) -> None:
    """Begin a checkpoint: an empty group that says what it is of."""
    zarr.open_group(path, mode="w-", attributes={"dbdask_checkpoint": FORMAT, **attributes})


def attributes(path: str) -> dict[str, Any]:
    """Return what a checkpoint is of.

    Raises
    ------
    CheckpointError
        `path` holds no checkpoint of this format.
    """
    try:
        found = dict(zarr.open_group(path, mode="r").attrs)
    except Exception as error:
        raise CheckpointError(f"checkpoint={path!r} cannot be read: {error}") from error
    if found.get("dbdask_checkpoint") != FORMAT:
        raise CheckpointError(
            f"checkpoint={path!r} is a Zarr group, but not a dbdask checkpoint of format {FORMAT}"
        )
    return found


def name_of(number: int, generation: int, run: str) -> str:
    """Name a snapshot so that a late writer of another run or generation has another name."""
    return f"{number:08d}-{generation}-{run}"


def begin(path: str, group: str, names: list[str], size: int, chunk: int) -> None:
    """Make the arrays of a snapshot: one chunk for each shard, with a checksum."""
    snapshot = zarr.open_group(path, mode="a").create_group(group)
    for name in names:
        snapshot.create_array(
            name, shape=(size,), chunks=(chunk,), dtype="float32", compressors=[Crc32cCodec()]
        )


def write_slice(
    path: str, group: str, start: int, stop: int, vectors: dict[str, np.ndarray]
) -> None:
    """Write one shard's slice of every vector: exactly one chunk each."""
    snapshot = zarr.open_group(path, mode="r+", use_consolidated=False)[group]
    for name, vector in vectors.items():
        snapshot[name][start:stop] = vector  # type: ignore[index]


def commit(path: str, group: str, state: dict[str, Any]) -> None:
    """Put the one key that makes a snapshot count."""
    snapshot = zarr.open_group(path, mode="r+", use_consolidated=False)[group]
    snapshot.create_group("commit", attributes=state)  # type: ignore[union-attr]


def committed(path: str) -> list[Snapshot]:
    """List the committed snapshots, oldest first."""
    root = zarr.open_group(path, mode="r", use_consolidated=False)
    found = []
    for group in sorted(root.group_keys()):
        state = _commit_of(root, group)
        if state is not None:
            found.append(Snapshot(path, group, int(group.split("-")[0]), state))
    return found


def _commit_of(root: zarr.Group, group: str) -> dict[str, Any] | None:
    try:
        commit_group = root[f"{group}/commit"]
    except (KeyError, ValueError):
        return None
    return dict(commit_group.attrs) or None


def latest(path: str) -> Snapshot | None:
    """Return the committed snapshot of the highest number, or None."""
    snapshots = committed(path)
    return snapshots[-1] if snapshots else None


def read_slice(path: str, group: str, name: str, start: int, stop: int) -> np.ndarray:
    """Read a slice of one vector of a snapshot, whatever cut it was written in."""
    array = zarr.open_array(path, path=f"{group}/{name}", mode="r")
    return np.ascontiguousarray(array[start:stop], dtype=np.float32)


def vector_names(path: str, group: str) -> list[str]:
    """List the vectors of a snapshot."""
    return sorted(zarr.open_group(path, path=group, mode="r", use_consolidated=False).array_keys())


def delete(path: str, group: str) -> None:
    """Delete a snapshot; its commit goes first, so no reader sees half of it."""
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    if f"{group}/commit" in root:
        del root[f"{group}/commit"]
    if group in root:
        del root[group]


@dataclass(frozen=True)
class VectorReference:
    """A vector of a committed snapshot, or of a saved result: read when it is wanted."""

    path: str
    group: str
    name: str = "parameters"

    def open(self) -> zarr.Array:
        """Open the Zarr array."""
        return zarr.open_array(self.path, path=f"{self.group}/{self.name}".lstrip("/"), mode="r")

    def read(self) -> np.ndarray:
        """Read the whole vector, float32."""
        return np.ascontiguousarray(self.open()[:], dtype=np.float32)
