"""Reading a box of a Zarr array with no more memory than it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync


def read_array(array: zarr.Array, index: tuple[slice, ...]) -> np.ndarray:
    """Return the stored values in the box, in native byte order; they may be read-only.

    A box that is one whole chunk is decoded in place: Zarr's own indexing would hold the chunk
    twice, which counts where a chunk is a good part of a worker's memory.
    """
    found = None
    place = _one_chunk(array, index)
    if place is not None:
        found = sync(_decode_chunk(array, place))
    if found is None:
        found = np.asarray(array[index] if index else array[()])
    else:
        found = found[tuple(slice(0, cut.stop - cut.start) for cut in index)]
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def _one_chunk(array: zarr.Array, index: tuple[slice, ...]) -> tuple[int, ...] | None:
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


async def _decode_chunk(array: zarr.Array, place: tuple[int, ...]) -> np.ndarray | None:
    """Return the chunk, or None where the store holds none (all of it is the fill value)."""
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
