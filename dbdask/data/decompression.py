"""Decompression that stops where a chunk is declared to end.

A compressed chunk of a few kilobytes may inflate to gigabytes of zeros. If a chunk's header states
its size, the header shows whether the chunk is too large. Any other chunk is inflated here, and
refused when it passes the limit.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numcodecs
import numpy as np

Config = Mapping[str, Any]

XZ_MEMORY = 256 * 2**20
"""Bytes that the dictionary of LZMA may take; its strongest preset takes 65 MiB."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK = 128 * 2**10  # bytes that one block inflates to at most


class Oversized(ValueError):
    """A chunk holds more than it is declared to hold."""

    def __init__(self, limit: int, found: str) -> None:
        super().__init__(limit, found)
        self.limit, self.found = limit, found

    def __str__(self) -> str:
        return f"it inflates to {self.found} where at most {self.limit:,} bytes are expected"


class _Inflater(Protocol):
    """A decompressor of the standard library."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes: ...


def inflate(name: str, config: Config, stored: memoryview, limit: int) -> bytes | None:
    """Return the decompressed bytes; None if the codec's own decoding is safe.

    Parameters
    ----------
    name, config
        The codec, as numcodecs calls it, and its configuration.
    stored
        The compressed bytes.
    limit
        The most bytes that may be found.

    Raises
    ------
    Oversized
        There are more; finding that out takes at most `limit` bytes of memory.
    ValueError
        The stream is incomplete.
    """
    if name in _STATED_SIZES:
        found = _STATED_SIZES[name](stored)
        if found is not None and found > limit:
            raise Oversized(limit, f"{found:,} bytes")
        return _zstd_of_unknown_size(stored, limit) if found is None else None
    if name not in _INFLATERS:
        return None
    many = name != "zlib"  # the others may be several streams in a row
    return _inflate(lambda: _INFLATERS[name](config), stored, limit, many)


def _inflate(make: Callable[[], _Inflater], stored: memoryview, limit: int, many: bool) -> bytes:
    parts: list[bytes] = []
    left = limit + 1
    rest: memoryview | bytes = stored
    while True:
        inflater = make()
        parts.append(inflater.decompress(rest, left))
        left -= len(parts[-1])
        if left <= 0:
            raise Oversized(limit, f"more than {limit:,} bytes")
        if not inflater.eof:
            raise ValueError("incomplete or truncated stream")
        rest = inflater.unused_data.lstrip(b"\0") if many else b""
        if not rest:
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _gzip(config: Config) -> _Inflater:
    return zlib.decompressobj(wbits=31)


def _lzma(config: Config) -> _Inflater:
    form = config.get("format", lzma.FORMAT_XZ)
    if form == lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(form, filters=config.get("filters"))
    return lzma.LZMADecompressor(form, memlimit=XZ_MEMORY)


_INFLATERS: dict[str, Callable[[Config], _Inflater]] = {
    "zlib": lambda config: zlib.decompressobj(),
    "gzip": _gzip,
    "bz2": lambda config: bz2.BZ2Decompressor(),
    "lzma": _lzma,
}


def _stated_by_blosc(stored: memoryview) -> int:
    return int.from_bytes(stored[4:8], "little")


def _stated_by_lz4(stored: memoryview) -> int:
    return int.from_bytes(stored[:4], "little")


def _stated_by_zstd(stored: memoryview) -> int | None:
    """Return the size in a frame's header; None if it states none."""
    if stored[:4] != _ZSTD_MAGIC or len(stored) < 6:
        return 0  # no frame: the codec will raise an error
    start, size, base = _content_size_field(stored[4])
    return base + int.from_bytes(stored[start : start + size], "little") if size else None


def _content_size_field(descriptor: int) -> tuple[int, int, int]:
    """Return the start and the length of a frame's content size, and the number to add to it."""
    single = descriptor >> 5 & 1
    size = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return start, size, 256 if size == 2 else 0


_STATED_SIZES: dict[str, Callable[[memoryview], int | None]] = {
    "blosc": _stated_by_blosc,
    "lz4": _stated_by_lz4,
    "zstd": _stated_by_zstd,
}


def _zstd_of_unknown_size(stored: memoryview, limit: int) -> bytes | None:
    """Return None if a frame inflates to at most `limit` bytes by its block headers.

    Else inflate it into a buffer of that size.
    """
    if _most_bytes_of_blocks(stored) <= limit:
        return None
    try:
        filled: np.ndarray = numcodecs.Zstd().decode(stored, np.empty(limit, np.uint8))
    except RuntimeError as error:
        if "too small" in str(error):
            raise Oversized(limit, f"more than {limit:,} bytes") from error
        return None  # it is shorter, or damaged
    return filled.tobytes()


def _most_bytes_of_blocks(stored: memoryview) -> float:
    """Return the most bytes that a frame's blocks inflate to; infinity if more data follow."""
    start, size, _ = _content_size_field(stored[4])
    at, total, is_last = start + size, 0, False
    while not is_last:
        header = int.from_bytes(stored[at : at + 3], "little")
        is_last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        total += length if kind < 2 else _ZSTD_BLOCK
        at += 3 + (1 if kind == 1 else length)
        if at > len(stored):
            return float("inf")
    checksum = 4 if stored[4] & 4 else 0
    return total if at + checksum == len(stored) else float("inf")
