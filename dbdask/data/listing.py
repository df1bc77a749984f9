"""The arrays that a Zarr group holds, and the reasons why some of them cannot be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync

from dbdask.data.bounded_codecs import unsafe_codec
from dbdask.data.locations import Location, unsafe_error
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError

LONGEST = 2**63 - 1
"""The most positions that an index of a dimension can count."""


def list_arrays(
    location: Location, group: zarr.Group
) -> tuple[dict[str, ZarrArray], dict[str, str]]:
    """Return the usable arrays of a group by name, and for every other one the reason.

    Raises
    ------
    ValueError
        If the store cannot be listed, and has no consolidated metadata.
    OSError
        The store failed each time.
    DataError
        It gave no answer within `dbdask.read`.
    """
    refused: dict[str, str] = {}
    try:
        found = location.ask(lambda: dict(group.arrays()), "the metadata of the arrays")
    except (OSError, DataError):
        raise
    except Exception:
        found, refused = _one_by_one(location, group)
    if not found and not refused:
        _check_listing(location, group)
    for name in tuple(found):
        reason = _fault(found[name], name, str(location))
        if reason:
            refused[name] = reason
            del found[name]
    return found, refused


def _fault(array: ZarrArray, name: str, store: str) -> str:
    unsafe = unsafe_codec(array)
    if unsafe:
        return unsafe_error(name, store, unsafe)
    chunks = array.shards or array.chunks
    if any(size and not chunk for size, chunk in zip(array.shape, chunks, strict=True)):
        return f"variable {name!r} of {store} declares chunks of length 0: {chunks}"
    if any(size > LONGEST for size in array.shape):
        return f"variable {name!r} of {store} declares more positions than can be: {array.shape}"
    return ""


def _one_by_one(
    location: Location, group: zarr.Group
) -> tuple[dict[str, ZarrArray], dict[str, str]]:
    """Open each member by itself, so that one with wrong metadata is known by its name."""
    found: dict[str, ZarrArray] = {}
    refused: dict[str, str] = {}
    for name in _names(location, group):
        try:
            member = location.ask(partial(group.__getitem__, name), f"the metadata of {name!r}")
        except KeyError:  # a file beside the arrays
            continue
        except DataError:
            raise
        except Exception as error:
            refused[name] = (
                f"variable {name!r} of {location} has metadata that cannot be read: "
                f"{type(error).__name__}: {error}"
            )
            continue
        if isinstance(member, zarr.Array):
            found[name] = member
    return found, refused


def _check_listing(location: Location, group: zarr.Group) -> None:
    """Raise ValueError if the store cannot be listed and has no consolidated metadata."""
    if group.metadata.consolidated_metadata is None and not _names(location, group):
        raise ValueError(
            f"data: {location} cannot be listed and has no consolidated metadata, so its variables "
            "are not known; write the metadata together with zarr.consolidate_metadata(store), or "
            "write it with dataset.to_zarr(..., consolidated=True)"
        )


def _names(location: Location, group: zarr.Group) -> list[str]:
    """Return the names of what a group holds, sorted; none if its store cannot be listed."""
    return location.ask(lambda: sync(_listed(group.store, group.path)), "the list of arrays")


async def _listed(store: Store, path: str) -> list[str]:
    listed: AsyncIterator[str] = store.list_dir(path)
    try:
        return sorted([name async for name in listed])
    except (NotImplementedError, OSError):
        return []
