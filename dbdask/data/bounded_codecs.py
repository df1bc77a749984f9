"""Codecs that decode at most the bytes that a chunk is declared to hold, and run no code."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numcodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec, VLenBytesCodec, VLenUTF8Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline

from dbdask.data.decompression import Oversized, inflate
from dbdask.data.zarr_arrays import ZarrArray

try:
    from zarr.codecs._v2 import V2Codec
except ImportError:  # a version that reads format 2 otherwise
    V2Codec = None  # type: ignore[assignment,misc]

TEXT_BYTES = 64 * 2**10
"""Bytes that a value of variable length may take, as the mean of a chunk."""

LEAST_TEXT = 64 * 2**20
"""Bytes that all values of variable length in a chunk may take in any case."""

FILTERED = 8
"""How many times wider than the array's dtype a filter may store a value."""

_UNSAFE = ("pickle", "cloudpickle", "dill")
_COUNTED = ("vlen-utf8", "vlen-bytes", "vlen-array")


def unsafe_codec(array: ZarrArray) -> str:
    """Return the name of a codec that runs code which the store holds; empty if there is none."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        names = [
            _numcodec_name(codec) for codec in (*(metadata.filters or ()), metadata.compressor)
        ]
    else:
        names = [name for codec in metadata.codecs for name in _names(codec)]
    return next((name for name in names if name.split(".")[-1] in _UNSAFE), "")


def bound(array: ZarrArray) -> None:
    """Make an array that was opened here refuse chunks that hold more than is declared.

    A pipeline that is not Zarr's own is left as it is.
    """
    inner = array.async_array
    if type(inner.codec_pipeline) is not BatchedCodecPipeline:
        return
    codecs = tuple(inner.codec_pipeline)
    if V2Codec is not None and isinstance(codecs[0], V2Codec):
        bounded: tuple[Codec, ...] = (_bounded_format_2(codecs[0], array),)
    else:
        bounded = _bounded(codecs)
    object.__setattr__(inner, "codec_pipeline", BatchedCodecPipeline.from_codecs(bounded))


def most_stored_bytes(array: ZarrArray) -> int:
    """Return the bytes that the stored form of one chunk, or shard, takes at most."""
    shape = array.shards or array.chunks
    declared = chunk_bytes(shape, array.dtype)
    if declared is None:
        return _text_limit(shape)
    widest = FILTERED if array.filters else 1
    return with_slack(declared * widest) + _index_bytes(shape, array.chunks)


def chunk_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int | None:
    """Return the bytes of a decoded chunk; None if its values have variable lengths."""
    return None if dtype.kind in "OT" else math.prod(shape) * dtype.itemsize


def with_slack(size: int) -> int:
    """Return `size` with slack for checksums, headers, and a compressor that gains nothing."""
    return size + size // 8 + 2**16


def _text_limit(shape: tuple[int, ...]) -> int:
    return max(LEAST_TEXT, math.prod(shape) * TEXT_BYTES)


def _index_bytes(shape: tuple[int, ...], inner: tuple[int, ...]) -> int:
    """Return the bytes of a shard beside its values: an index, and a header for each chunk."""
    count = math.prod(-(-size // max(part, 1)) for size, part in zip(shape, inner, strict=True))
    return 256 * count


def _names(codec: Codec) -> Iterable[str]:
    yield str(codec.to_dict().get("name", ""))
    for nested in (*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())):
        yield from _names(nested)


def _numcodec_name(codec: object) -> str:
    return str(getattr(codec, "codec_id", "")) if codec is not None else ""


def _bounded_format_2(codec: Any, array: ZarrArray) -> Codec:
    declared = chunk_bytes(array.chunks, array.dtype)
    if declared is None:
        limit = _text_limit(array.chunks)
    else:
        limit = with_slack(declared * (FILTERED if codec.filters else 1))
    count = math.prod(array.chunks)
    filters = codec.filters and tuple(_Bounded(f, limit, count) for f in codec.filters)
    compressor = codec.compressor and _Bounded(codec.compressor, limit, count)
    bounded: Codec = replace(codec, filters=filters, compressor=compressor)
    return bounded


@dataclass(frozen=True)
class _Bounded:
    """A codec of numcodecs that decodes up to a limit."""

    codec: numcodecs.abc.Codec
    limit: int
    values: int

    def decode(self, stored: object) -> Any:
        name = _numcodec_name(self.codec)
        if name in _COUNTED:
            check_count(_raw(stored), self.values)
        found = inflate(name, self.codec.get_config(), _raw(stored), self.limit)
        return self.codec.decode(stored) if found is None else found


def _raw(stored: object) -> memoryview:
    return memoryview(numcodecs.compat.ensure_contiguous_ndarray(stored)).cast("B")


def check_count(stored: memoryview, values: int) -> None:
    """Raise Oversized if the header counts more texts than the chunk has values."""
    found = int.from_bytes(stored[:4], "little")
    if found > values:
        raise Oversized(values, f"{found:,} values")


def _bounded(codecs: Iterable[Codec], beside: int = 0) -> tuple[Codec, ...]:
    found: list[Codec] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            beside = 2**40  # of the index; the shard's own size was looked at when it was read
            found.append(replace(codec, codecs=_bounded(codec.codecs)))
        elif isinstance(codec, (VLenUTF8Codec, VLenBytesCodec)):
            found.append(CountedTexts(codec))
        elif isinstance(codec, BytesBytesCodec):
            found.append(BoundedBytes(codec, beside))
        else:
            found.append(codec)
    return tuple(found)


@dataclass(frozen=True)
class CountedTexts(ArrayBytesCodec):
    """A codec of texts that checks their number before it decodes them."""

    codec: VLenUTF8Codec | VLenBytesCodec
    is_fixed_size = False

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        check_count(_raw(chunk_data.as_array_like()), math.prod(chunk_spec.shape))
        found: NDBuffer = await self.codec._decode_single(chunk_data, chunk_spec)
        return found

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("arrays are only read")


@dataclass(frozen=True)
class BoundedBytes(BytesBytesCodec):
    """A compressor that decodes up to the declared size of the chunk."""

    codec: Any
    beside: int = 0
    is_fixed_size = False

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        name, config = self._named()
        raw = _raw(chunk_data.as_array_like())
        found = await asyncio.to_thread(inflate, name, config, raw, self._limit(chunk_spec))
        if found is not None:
            return chunk_spec.prototype.buffer.from_bytes(found)
        passed: Buffer = await self.codec._decode_single(chunk_data, chunk_spec)
        return passed

    def _named(self) -> tuple[str, Mapping[str, Any]]:
        described = self.codec.to_dict()
        return described["name"].removeprefix("numcodecs."), described.get("configuration", {})

    def _limit(self, chunk_spec: ArraySpec) -> int:
        dtype: Any = chunk_spec.dtype
        native = dtype if isinstance(dtype, np.dtype) else dtype.to_native_dtype()
        declared = chunk_bytes(chunk_spec.shape, native)
        if declared is None:
            return _text_limit(chunk_spec.shape) + self.beside
        return with_slack(declared) + self.beside

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        found: int = self.codec.compute_encoded_size(input_byte_length, chunk_spec)
        return found
