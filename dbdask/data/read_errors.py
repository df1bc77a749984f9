"""Errors of values that cannot be read: each names variable, place, reason and remedy."""

from __future__ import annotations

from dbdask.data.chunk_reading import NoRoom
from dbdask.data.decompression import Oversized
from dbdask.data.retrying import ReadFailed, is_refused
from dbdask.data.stores import Vanished
from dbdask.errors import DataError, StoreFailed


def read_error(
    error: Exception, name: str, index: tuple[slice, ...], store: str, chunk: str = ""
) -> DataError:
    """Return the error to raise after reading a box of a variable has failed.

    Parameters
    ----------
    error
        The error that reading raised.
    name, index, store
        The variable, the box, and the store.
    chunk
        The chunk that holds more than it is declared to, if it is known.
    """
    where = ", ".join(f"{cut.start}:{cut.stop}" for cut in index)
    if isinstance(error, Vanished):
        return DataError(
            f"variable {name!r} of {store}: {error}; the data were deleted or written anew while "
            "they were read: restore them and start again, or go on from a checkpoint"
        )
    if isinstance(error, Oversized):
        which = f"chunk {chunk}" if chunk else f"a chunk of [{where}]"
        return DataError(
            f"variable {name!r} of {store}: {which} cannot be read: {error}; the chunk or the "
            "array's metadata is damaged, or was made to exhaust memory: write it again"
        )
    if isinstance(error, NoRoom):
        return DataError(
            f"variable {name!r} at [{where}] of {store} cannot be read: {error}; write it again in "
            "smaller chunks, or give the process more memory"
        )
    what = f"variable {name!r} at [{where}] of {store}"
    if isinstance(error, ReadFailed):
        return store_failed(what, error)
    remedy = (
        "give every process that reads it the right to do so"
        if is_refused(error)
        else "its chunk is damaged or not there: write it again, or leave it out with .isel"
    )
    return DataError(f"{what} cannot be read: {type(error).__name__}: {error}; {remedy}")


def store_failed(what: str, error: ReadFailed) -> StoreFailed:
    """Return the error to raise after a store has failed each time that `what` was read."""
    return StoreFailed(
        f"{what} cannot be read: {error}; its store is out of reach, or gets more requests than it "
        "serves: start again when it answers; a run with checkpoint= goes on with resume=True"
    )
