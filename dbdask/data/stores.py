"""Stores that check what they read: regular files only, and chunks that have not vanished."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from dbdask.data.retrying import RetryingStore
from dbdask.data.zarr_arrays import ZarrArray

METADATA_BYTES = 128 * 2**20
"""The most bytes of a file that is no chunk: enough for the metadata of 100,000 variables."""

WATCHED_CHUNKS = 2**33
"""The most chunks of an array that are recorded, at one bit each."""


class Vanished(RuntimeError):
    """A chunk or an array was there before, and is gone."""


class RegularStore(LocalStore):
    """A folder of which only regular files up to a size are read.

    A link to an endless device, a pipe without a writer, or a sparse file of terabytes would
    exhaust a worker's memory or block it for ever.
    """

    most_bytes = METADATA_BYTES

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes of a key; None if there is no such file.

        Raises
        ------
        ValueError
            It is no regular file, or has more than `most_bytes` bytes.
        """
        if not self._is_open:
            await self._open()
        make = (prototype or default_buffer_prototype()).buffer.from_bytes
        try:
            found = await asyncio.to_thread(_read, self.root / key, byte_range, self.most_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return make(found)


def _read(path: Path, byte_range: ByteRequest | None, most_bytes: int) -> bytes:
    with open(path, "rb", opener=_open_at_once, buffering=0) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{path} is no regular file, but {_kind(info.st_mode)}")
        start, stop = _span(byte_range, info.st_size)
        if stop - start > most_bytes:
            raise ValueError(
                f"{path} has {info.st_size:,} bytes, where at most {most_bytes:,} are expected"
            )
        file.seek(start)
        return _read_bytes(file, stop - start)


def _read_bytes(file: BinaryIO, size: int) -> bytes:
    """Return `size` bytes, or fewer at the end of the file, in as many calls as it takes."""
    found: bytes = file.read(size)
    while len(found) < size:
        more = file.read(size - len(found))
        if not more:
            break
        found += more
    return found


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the other end if it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(mode: int) -> str:
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device"}
    return next((words for test, words in kinds.items() if test(mode)), "something else")


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        return min(byte_range.start, size), min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return min(byte_range.offset, size), size
    assert isinstance(byte_range, SuffixByteRequest)
    return max(0, size - byte_range.suffix), size


class _Watched(NamedTuple):
    """The array whose chunks are recorded."""

    prefix: str
    """Of the keys of its chunks."""
    document: str
    """Key of its metadata."""
    grid: tuple[int, ...]
    """Chunks along each axis."""


class WatchedStore(RetryingStore):
    """A store of one array that records which chunks are in it, and which are not.

    By the format, a chunk that is not in the store holds the fill value. This is believed only
    if the array still exists, and if the chunk was not there before.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.fills: set[int] = set()
        """Numbers of the chunks that are not in the store, in row-major order."""
        self._watched: _Watched | None = None
        self._seen = np.zeros(0, np.uint8)
        self._last_seen = ""

    def watch(self, array: ZarrArray) -> None:
        """Record the chunks of this array from now on, if it has at most `WATCHED_CHUNKS`."""
        shape = array.shards or array.chunks
        grid = tuple(-(-n // c) for n, c in zip(array.shape, shape, strict=True))
        count = int(np.prod(grid, dtype=object)) if grid else 1
        if count > WATCHED_CHUNKS:
            return
        prefix = f"{array.path}/" if array.path else ""
        name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
        self._seen = np.zeros(-(-count // 8), np.uint8)
        self._watched = _Watched(prefix, f"{prefix}{name}", grid)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key; None for a chunk that holds the fill value.

        Raises
        ------
        Vanished
            The chunk, or the array, was there before and is gone.
        ReadFailed
            The store failed at each of several tries.
        """
        found = await super().get(key, prototype, byte_range)
        watched = self._watched
        number = None if watched is None else _chunk_number(watched, key)
        if watched is not None and number is not None:
            if found is None:
                await self._check_absent(watched, key, number)
            else:
                self._seen[number >> 3] |= 1 << (number & 7)
                self._last_seen = key
        return found

    async def _check_absent(self, watched: _Watched, key: str, number: int) -> None:
        name = key[len(watched.prefix) :]
        if self._seen[number >> 3] >> (number & 7) & 1:
            raise Vanished(f"chunk {name} was there when it was read before, and is gone")
        if not await self.exists(watched.document):
            raise Vanished(f"chunk {name} is not there, and the array is gone")
        if self._last_seen and not await self.exists(self._last_seen):
            gone = self._last_seen[len(watched.prefix) :]
            raise Vanished(f"chunk {name} is not there, and chunk {gone}, read before, is gone")
        self.fills.add(number)


def _chunk_number(watched: _Watched, key: str) -> int | None:
    """Return the number of the chunk that a key names; None for other keys."""
    if not key.startswith(watched.prefix):
        return None
    rest = key[len(watched.prefix) :]
    if not re.fullmatch(r"c?[/.]?\d*([/.]\d+)*", rest):
        return None
    digits = re.findall(r"\d+", rest)
    if watched.grid and len(digits) != len(watched.grid):
        return None
    number = 0
    for at, size in zip(map(int, digits), watched.grid, strict=False):  # a scalar has a "0"
        number = number * size + at
    return number
