"""JSON and vectors in a Zarr store, with checksums: a later change of their bytes is an error.

Sealed JSON carries a checksum of its content. A vector has one chunk for each shard. Every chunk is
stored with a checksum, even if it holds only zeros. The length of a vector and of its chunks come
from sealed JSON. So no value and no size is taken from bytes that no checksum covers.
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

from dbdask.json_types import JsonObject

Place = str | Store
"""A path, a URL or a Zarr store."""

PARTIAL = re.compile(r"\w+\.[0-9a-f]{32}\.partial")

LOCAL = ("file", "local")
"""The schemes of URLs that name a path."""


class OtherKind(ValueError):
    """A Zarr group is not of the kind that the reader expects."""


def open_store(place: Place) -> Store:
    """Return the store at a path or a URL. A store is returned unchanged."""
    if isinstance(place, Store):
        return place
    path = local_path(place)
    if path is None:
        return FsspecStore.from_url(place)
    return LocalStore(path)  # it makes missing folders


def local_path(place: str) -> str | None:
    """Return the path of a file URL, or a path unchanged; None for any other URL.

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
    """Whether a place holds no key."""
    return not children(place) and not _holds(open_store(place), "")


def children(place: Place) -> list[str]:
    """List the names directly below a place, sorted. A place that does not exist has none."""

    async def collect(names: AsyncIterator[str]) -> list[str]:
        return sorted([name async for name in names])

    try:
        return sync(collect(open_store(place).list_dir("")))
    except FileNotFoundError:
        return []


def is_partial(name: str) -> bool:
    """Whether a name is that of a file which a local store has not yet moved to its key.

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
        return True  # the path is in use, but not by a key of a store


def clear(place: Place) -> None:
    """Delete every key at a place."""
    sync(open_store(place).clear())


def holds(place: Place, key: str) -> bool:
    """Whether a place holds a key."""
    return _holds(open_store(place), key)


def is_bare(place: Place) -> bool:
    """Whether the group at a place has no attributes."""
    group = zarr.open_group(open_store(place), mode="r", zarr_format=3, use_consolidated=False)
    return not dict(group.attrs)


def keys(place: Place, group: str) -> set[str]:
    """Return every key of a group. A group that does not exist has none."""

    async def collect(names: AsyncIterator[str]) -> set[str]:
        return {name async for name in names}

    try:
        return sync(collect(open_store(place).list_prefix(f"{group}/")))
    except FileNotFoundError:
        return set()


def delete(place: Place, name: str) -> None:
    """Delete a key, or a group with all its keys, directly below a place."""
    store = open_store(place)
    if keys(place, name):
        sync(store.delete_dir(name))
    else:
        sync(store.delete(name))


def write(place: Place, path: str, kind: JsonObject, content: JsonObject) -> None:
    """Make a group with sealed content.

    Parameters
    ----------
    place, path
        The store, and the path of the group in it.
    kind
        Attributes by which a reader recognises the group.
    content
        Anything that JSON can hold, and NumPy's numbers and arrays.

    Raises
    ------
    TypeError
        JSON cannot hold a value.
    """
    _create(open_store(place), path, kind, content)


def _create(store: Store, path: str, kind: JsonObject, content: JsonObject) -> None:
    content = as_json(content)
    attributes = {**kind, "sealed": content, "sha256": _checksum(content)}
    zarr.create_group(store, path=path, zarr_format=3, attributes=attributes)


def replace_root(place: Place, kind: JsonObject, content: JsonObject) -> None:
    """Replace the kind and the content of the group at a place. Only one key changes."""
    memory = MemoryStore()
    _create(memory, "", kind, content)
    made = sync(memory.get("zarr.json", prototype=default_buffer_prototype()))
    assert made is not None
    sync(open_store(place).set("zarr.json", made))


def as_json(content: JsonObject) -> JsonObject:
    """Return the content as JSON would return it: NumPy's numbers become Python's.

    Raises
    ------
    TypeError
        JSON cannot hold a value.
    """
    plain: JsonObject = json.loads(json.dumps(content, default=_plain))
    return plain


def read(place: Place, path: str, kind: JsonObject) -> JsonObject:
    """Return the content of a group that `write` has made.

    Raises
    ------
    OtherKind
        The group does not have the attributes `kind`.
    ValueError
        The content was changed.
    FileNotFoundError
        There is no group.
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


def _checksum(content: JsonObject) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    """Return the Python value of a NumPy value."""
    if isinstance(value, (np.generic, np.ndarray)):
        plain: object = value.tolist()
        return plain
    raise TypeError(f"{type(value).__name__} {value!r} cannot be kept as JSON")


def make_vector(place: Place, path: str, size: int, chunk: int) -> "zarr.Array[Any]":
    """Make a vector, float32 (size,), in chunks of `chunk` elements with checksums."""
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
    """Write whole chunks of a vector, one after the other: each is copied while it is encoded.

    `values` are float32 (n,), at most stop - start of them: zeros follow. Zarr would leave out a
    chunk of zeros. Here it is written, so that a missing chunk is an error.
    """
    found = zarr.open_array(open_store(place), path=path, mode="r+", zarr_format=3).async_array
    every_chunk: Any = {"write_empty_chunks": True}  # zarr's type for it moves between versions
    array = zarr.Array(zarr.AsyncArray(found.metadata, found.store_path, every_chunk))
    for first in range(start, stop, array.chunks[0]):
        last = min(first + array.chunks[0], stop)
        piece = values[first - start : last - start]
        if len(piece) < last - first:
            piece = np.pad(piece, (0, last - first - len(piece)))
        array[first:last] = piece


def read_slice(place: Place, path: str, start: int, stop: int, size: int, chunk: int) -> np.ndarray:
    """Return a slice of a vector that was made with `size` and `chunk`.

    Returns
    -------
    numpy.ndarray
        float32 of shape (stop - start,).

    Raises
    ------
    ValueError
        The metadata were changed, or a chunk is missing or was changed.
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
