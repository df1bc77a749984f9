"""Reading a box of a Zarr array with no more memory than it needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from dbdask.data.bounded_codecs import chunk_bytes
from dbdask.data.decompression import Oversized
from dbdask.data.memory import memory_limit
from dbdask.data.zarr_arrays import ZarrArray

SMALL_BYTES = 256 * 2**20
"""Bytes that are read without asking how much memory there is."""


class NoRoom(Exception):
    """A chunk or a box is larger than the memory that this process may use."""


def read_array(array: ZarrArray, index: tuple[slice, ...]) -> np.ndarray:
    """Return the stored values in a box: of the box's shape and the stored dtype.

    They are in native byte order, and may be read-only. A box that is one whole chunk is decoded in
    place: Zarr's own indexing would hold the chunk twice, which matters if a chunk fills much of a
    worker's memory.
    """
    place = _one_chunk(array, index)
    if place is None:
        found = np.asarray(array[index] if index else array[()])
    else:
        decoded = sync(_decode_chunk(array, place))
        shape = tuple(cut.stop - cut.start for cut in index)
        if decoded is None:
            found = np.full(shape, _fill(array), array.dtype)
        else:
            found = decoded[tuple(slice(0, size) for size in shape)]
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def oversized_chunk(array: ZarrArray, index: tuple[slice, ...]) -> str:
    """Return the name of the first chunk in a box that holds more than it is declared to."""
    for place in itertools.product(*_spans(array, index)):
        try:
            sync(_decode_chunk(array, place))
        except Oversized:
            return ".".join(map(str, place)) or "0"
    return ""


def check_memory(array: ZarrArray, index: tuple[slice, ...]) -> None:
    """Refuse to read what this process cannot hold.

    Raises
    ------
    NoRoom
        It cannot hold the box, or a chunk of it.
    """
    box = math.prod(cut.stop - cut.start for cut in index) * array.dtype.itemsize
    chunk = chunk_bytes(array.chunks, array.dtype) or 0
    if max(box, chunk) <= SMALL_BYTES:
        return
    limit = memory_limit()
    if limit is None or max(box, chunk) <= limit:
        return
    what = f"a chunk of shape {array.chunks}" if chunk >= box else "it"
    raise NoRoom(f"{what} takes {max(box, chunk):,} bytes, and this process may use {limit:,}")


def _fill(array: ZarrArray) -> object:
    """Return the fill value; format 2 may have none, which is zero."""
    return 0 if array.fill_value is None else array.fill_value


def chunk_count(array: ZarrArray, index: tuple[slice, ...]) -> int:
    """Return how many chunks, or shards, share a value with the box."""
    return math.prod(len(span) for span in _spans(array, index))


def first_chunk(array: ZarrArray, index: tuple[slice, ...]) -> str:
    """Return the key of the first chunk, or shard, that shares a value with the box."""
    place = tuple(span.start for span in _spans(array, index))
    return array.metadata.encode_chunk_key(place)


def chunk_numbers(array: ZarrArray, index: tuple[slice, ...]) -> Iterator[int]:
    """Return their numbers, in row-major order of the whole array."""
    shape = array.shards or array.chunks
    grid = [-(-size // chunk) for size, chunk in zip(array.shape, shape, strict=True)]
    for place in itertools.product(*_spans(array, index)):
        number = 0
        for at, size in zip(place, grid, strict=True):
            number = number * size + at
        yield number


def _spans(array: ZarrArray, index: tuple[slice, ...]) -> list[range]:
    shape = array.shards or array.chunks
    return [
        range(cut.start // size, -(-cut.stop // size))
        for cut, size in zip(index, shape, strict=True)
    ]


def _one_chunk(array: ZarrArray, index: tuple[slice, ...]) -> tuple[int, ...] | None:
    """Return the place of the chunk that the box is, if it is one whole chunk."""
    if not index or array.shards is not None or array.dtype.kind not in "biuf":
        return None
    place = []
    for cut, chunk, size in zip(index, array.chunks, array.shape, strict=True):
        number, offset = divmod(cut.start, chunk)
        if offset or cut.start >= size or cut.stop != min(cut.start + chunk, size):
            return None
        place.append(number)
    return tuple(place)


async def _decode_chunk(array: ZarrArray, place: tuple[int, ...]) -> np.ndarray | None:
    """Return the chunk, or None if the store holds none (all of it is the fill value)."""
    inner = array.async_array
    prototype = default_buffer_prototype()
    stored = await (inner.store_path / inner.metadata.encode_chunk_key(place)).get(prototype)
    if stored is None:
        return None
    config = inner.config
    if inner.metadata.zarr_format == 2:
        config = replace(config, order=inner.metadata.order)
    spec = inner.metadata.get_chunk_spec(place, config, prototype)
    (decoded,) = await inner.codec_pipeline.decode([(stored, spec)])
    return None if decoded is None else np.asarray(decoded.as_ndarray_like())
