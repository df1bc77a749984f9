"""Sealed: JSON and vectors in a Zarr store, so that what was changed since is an error.

Sealed JSON carries a checksum of its content. A vector has one chunk a shard; each is stored,
whatever it holds, with a checksum, and its length and cut come from sealed JSON. So nothing is
believed, and nothing is sized, by bytes that no checksum covers.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.request import url2pathname

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore

Place = str | Store
"""A path, a URL or a Zarr store."""

PARTIAL = re.compile(r"\w+\.[0-9a-f]{32}\.partial")

LOCAL = ("file", "local")
"""The schemes of URLs that name a path."""


class OtherKind(ValueError):
    """A Zarr group that is of another kind than the reader wants."""


def open_store(place: Place) -> Store:
    """Return the store at a path or a URL; a store as it is."""
    if isinstance(place, Store):
        return place
    path = local_path(place)
    if path is None:
        return FsspecStore.from_url(place)
    return LocalStore(path)  # makes the folders that are missing


def local_path(place: str) -> str | None:
    """Return the path that a path, or a URL of a file, names; None for a URL of another kind.

    Examples
    --------
    >>> local_path("file:///data/run%201.zarr"), local_path("/data/50%20"), local_path("s3://a/b")
    ('/data/run 1.zarr', '/data/50%20', None)
    """
    scheme, mark, rest = place.partition("://")
    if not mark:
        return place
    if scheme.lower() not in LOCAL:
        return None
    return url2pathname(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest)


def is_empty(place: Place) -> bool:
    """Whether nothing lies at a place."""
    return not children(place) and not _holds(open_store(place), "")


def children(place: Place) -> list[str]:
    """List the names right below a place, sorted; none where there is no such place."""

    async def collect(names: AsyncIterator[str]) -> list[str]:
        return sorted([name async for name in names])

    try:
        return sync(collect(open_store(place).list_dir("")))
    except FileNotFoundError:
        return []


def is_partial(name: str) -> bool:
    """Whether a file is what a local store writes before it moves it to its key.

    Examples
    --------
    >>> is_partial(f"zarr.{32 * '0'}.partial"), is_partial("zarr.json"), is_partial("my.partial")
    (True, False, False)
    """
    return PARTIAL.fullmatch(name) is not None


def _holds(store: Store, key: str) -> bool:
    try:
        return sync(store.exists(key))
    except OSError:
        return True  # something is there that is no key of a store


def clear(place: Place) -> None:
    """Delete all that lies at a place."""
    sync(open_store(place).clear())


def holds(place: Place, key: str) -> bool:
    """Whether a key is there."""
    return _holds(open_store(place), key)


def is_bare(place: Place) -> bool:
    """Whether the group at a place itself says nothing."""
    group = zarr.open_group(open_store(place), mode="r", zarr_format=3, use_consolidated=False)
    return not dict(group.attrs)


def keys(place: Place, group: str) -> set[str]:
    """Return every key of a group; none where there is no such group."""

    async def collect(names: AsyncIterator[str]) -> set[str]:
        return {name async for name in names}

    try:
        return sync(collect(open_store(place).list_prefix(f"{group}/")))
    except FileNotFoundError:
        return set()


def delete(place: Place, name: str) -> None:
    """Delete a key, or a group with all its keys, right below a place."""
    store = open_store(place)
    if keys(place, name):
        sync(store.delete_dir(name))
    else:
        sync(store.delete(name))


def write(place: Place, path: str, kind: dict[str, Any], content: dict[str, Any]) -> None:
    """Make a group whose attributes are `kind`, which tells it apart, and the sealed content."""
    _create(open_store(place), path, kind, content)


def _create(store: Store, path: str, kind: dict[str, Any], content: dict[str, Any]) -> None:
    content = as_json(content)
    attributes = {**kind, "sealed": content, "sha256": _checksum(content)}
    zarr.create_group(store, path=path, zarr_format=3, attributes=attributes)


def replace_root(place: Place, kind: dict[str, Any], content: dict[str, Any]) -> None:
    """Put other content into the group at a place itself: one key changes, and nothing else."""
    memory = MemoryStore()
    _create(memory, "", kind, content)
    made = sync(memory.get("zarr.json", prototype=default_buffer_prototype()))
    assert made is not None
    sync(open_store(place).set("zarr.json", made))


def as_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content as JSON gives it back; NumPy's numbers become Python's."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=_plain))
    return plain


def read(place: Place, path: str, kind: dict[str, Any]) -> dict[str, Any]:
    """Return the content that `write` sealed.

    Raises
    ------
    OtherKind
        It is something else.
    ValueError
        It was changed.
    FileNotFoundError
        There is none.
    """
    group = zarr.open_group(
        open_store(place), path=path, mode="r", zarr_format=3, use_consolidated=False
    )
    found = dict(group.attrs)
    if any(found.get(name) != value for name, value in kind.items()):
        wanted = ", ".join(f"{name} {value}" for name, value in kind.items())
        raise OtherKind(f"it is a Zarr group, but not of {wanted}")
    content = found.get("sealed")
    if not isinstance(content, dict) or found.get("sha256") != _checksum(content):
        raise ValueError("its checksum does not match: it was changed after it was written")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be kept as JSON")


def make_vector(place: Place, path: str, size: int, chunk: int) -> Any:
    """Make a float32 vector whose chunks carry checksums."""
    return zarr.create_array(
        open_store(place),
        name=path,
        shape=(size,),
        chunks=(chunk,),
        dtype="float32",
        fill_value=0,
        serializer=BytesCodec(endian="little"),
        filters=None,
        compressors=[Crc32cCodec()],
        zarr_format=3,
    )


def write_slice(place: Place, path: str, start: int, stop: int, values: np.ndarray) -> None:
    """Write whole chunks of a vector, also those that hold nothing but zeros."""
    found = zarr.open_array(open_store(place), path=path, mode="r+", zarr_format=3).async_array
    every_chunk: Any = {"write_empty_chunks": True}
    array: Any = zarr.AsyncArray(found.metadata, found.store_path, every_chunk)
    zarr.Array(array)[start:stop] = values


def read_slice(place: Place, path: str, start: int, stop: int, size: int, chunk: int) -> np.ndarray:
    """Read a slice of a vector that was made with `size` and `chunk`.

    Raises
    ------
    ValueError
        Its metadata are others, or a chunk is missing or was changed.
    """
    array = zarr.open_array(open_store(place), path=path, mode="r", zarr_format=3)
    inner = array.async_array
    if inner.metadata != make_vector(MemoryStore(), path, size, chunk).metadata:
        raise ValueError(f"the metadata of {path!r} were changed")
    for number in range(start // chunk, -(-stop // chunk)):
        key = inner.metadata.encode_chunk_key((number,))
        if not sync((inner.store_path / key).exists()):
            raise ValueError(f"chunk {number} of {path!r} is missing")
    return np.ascontiguousarray(array[start:stop], dtype=np.float32)
