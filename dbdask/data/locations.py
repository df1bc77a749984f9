"""Locations of Zarr stores, in a form with which every process can open them."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from dbdask.data.bounded_codecs import bound, most_stored_bytes, unsafe_codec
from dbdask.data.retrying import tried_again
from dbdask.data.stores import RegularStore, WatchedStore
from dbdask.data.waiting import waited_for
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError
from dbdask.storage.sealed import local_path

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")

# A MemoryStore lives in one process and never travels: a pickle holds a token, which finds
# the store again in a worker that is a thread of the process that opened it.
_living: WeakValueDictionary[str, Store] = WeakValueDictionary()


@dataclass(frozen=True)
class Location:
    """An absolute path, a URL, or a Zarr store object; exactly one of them.

    `token` stands for a store in memory when the location travels.
    """

    path: str | None = None
    url: str | None = None
    store: Store | None = None
    token: str | None = None

    def __str__(self) -> str:
        return str(self.path or self.url or self.store or "a store in another process's memory")

    def __getstate__(self) -> dict[str, object]:
        store = None if self.token else self.store
        return {"path": self.path, "url": self.url, "store": store, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["token"]:
            state = {**state, "store": _living.get(state["token"])}
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def open_store(self) -> Store:
        """Return a store that this process can read.

        Raises
        ------
        FileNotFoundError, ValueError, RuntimeError
            The path does not exist or is no store, the URL cannot be opened, or the store is in
            the memory of another process.
        """
        if self.path is not None:
            if not os.path.exists(self.path):
                raise FileNotFoundError(
                    f"data: no such path {self.path!r} as seen from this process; "
                    "give a path or URL that the client and every worker can open"
                )
            return _store_at_path(self.path)
        if self.url is not None:
            return _store_at_url(self.url)
        if self.store is None:
            raise RuntimeError(
                "data: a MemoryStore can be read by threads of its own process only; "
                "use LocalCluster(processes=False), or write the store to disk and give its path"
            )
        return self.store

    def open_group(self) -> zarr.Group:
        """Return the group.

        Raises
        ------
        ValueError, OSError
            There is no group that can be read: names the place and the remedy.
        DataError
            The store gave no answer within `dbdask.read`.
        """
        store = self.ask(self.open_store, "the root")
        try:
            return self.ask(lambda: zarr.open_group(store, mode="r"), "the metadata")
        except (GroupNotFoundError, ContainsArrayError) as error:
            raise ValueError(self._no_group(store)) from error
        except DataError:
            raise
        except OSError as error:
            raise OSError(f"data: cannot open {self}: {error}") from error
        except Exception as error:
            raise ValueError(
                f"data: {self} cannot be read as a Zarr group: {type(error).__name__}: {error}"
            ) from error

    def ask(self, read: Callable[[], T], what: str, nbytes: int = 0) -> T:
        """Return what a read of this store returns; it is tried again while its error may pass.

        Parameters
        ----------
        read
            The read, which runs on another thread.
        what
            Names what is read, for messages.
        nbytes
            Bytes that it is to bring; they lengthen the deadline.

        Raises
        ------
        ReadFailed
            Each try failed with an error that may pass.
        DataError
            The store gave no answer within `dbdask.read`.
        """
        place = str(self)
        return waited_for(
            lambda: tried_again(read, what, place), lambda: f"{what} of {place}", nbytes
        )

    def open_array(self, path: str) -> ZarrArray:
        """Return one array of the store, to read from; `path` is relative to the store's root.

        The array refuses chunks that hold more than is declared, and records missing chunks.

        Raises
        ------
        FileNotFoundError
            There is no such array.
        DataError
            A codec of the array runs code that the store holds.
        """
        store = self.open_store()
        try:
            return _guarded(zarr.open_array(WatchedStore(store), path=path, mode="r"), self)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data: no Zarr array {path!r} at {self} as seen from this process; "
                "give a path or URL that the client and every worker can open"
            ) from error

    def _no_group(self, store: Store) -> str:
        try:
            zarr.open_array(store, mode="r")
        except Exception:
            return (
                f"data: {self} is not a Zarr store (no group metadata found); give the path of a "
                "Zarr group, or open another format with xarray.open_dataset(path) and give that"
            )
        return f"data: {self} is one Zarr array, not a group of named variables; give its group"


def locate(data: str | os.PathLike[str] | Store) -> Location:
    """Return the location of a path (made absolute), a URL or a Zarr store."""
    if isinstance(data, Store):
        return _location_of_store(data)
    text = os.fspath(data)
    if not _URL.match(text):
        return Location(path=os.path.abspath(os.path.expanduser(text)))
    path = local_path(text)
    return Location(url=text) if path is None else Location(path=os.path.abspath(path))


def _guarded(array: ZarrArray, location: Location) -> ZarrArray:
    unsafe = unsafe_codec(array)
    if unsafe:
        raise DataError(unsafe_error(array.path, str(location), unsafe))
    bound(array)
    watched = array.store_path.store
    assert isinstance(watched, WatchedStore)
    watched.watch(array)
    if isinstance(watched._store, RegularStore):
        watched._store.most_bytes = most_stored_bytes(array)
    return array


def unsafe_error(name: str, store: str, codec: str) -> str:
    """Return the error text for an array whose codec runs code that its store holds."""
    return (
        f"variable {name!r} of {store} is stored with the codec {codec!r}, which runs code of the "
        "store when it is read; write it again with another codec, where you trust it"
    )


def _location_of_store(store: Store) -> Location:
    if isinstance(store, LocalStore):
        return Location(path=os.path.abspath(store.root))
    if isinstance(store, MemoryStore):
        token = uuid.uuid4().hex
        _living[token] = store
        return Location(store=store, token=token)
    return Location(store=store)


def _store_at_path(path: str) -> Store:
    if os.path.isdir(path):
        return RegularStore(Path(path), read_only=True)
    if path.endswith(".zip"):
        return zarr.storage.ZipStore(path, mode="r")
    raise ValueError(
        f"data: {path!r} is a file, not a Zarr store; open other formats with "
        "xarray.open_dataset(path) and give that Dataset"
    )


def _store_at_url(url: str) -> Store:
    try:
        return FsspecStore.from_url(url, read_only=True)
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(
            f"data: cannot open the URL {url!r}: {error}; install the fsspec package of its "
            "protocol (aiohttp for http), or open the store yourself and give the Zarr store"
        ) from error
