"""What is said where values cannot be read: variable, place, reason and remedy."""

from __future__ import annotations

from collections.abc import Callable

from dbdask.data.decompression import Oversized
from dbdask.data.stores import Vanished
from dbdask.errors import DataError


def read_error(
    error: Exception, name: str, index: tuple[slice, ...], store: str, oversized: Callable[[], str]
) -> DataError:
    """Return the error to raise where reading a box of a variable failed.

    Parameters
    ----------
    error
        What reading raised.
    name, index, store
        The variable, the box, and where it is.
    oversized
        Finds the chunk that holds more than it is declared to.
    """
    where = ", ".join(f"{cut.start}:{cut.stop}" for cut in index)
    if isinstance(error, Vanished):
        return DataError(
            f"variable {name!r} of {store}: {error}; the data were deleted or written anew while "
            "they were read: restore them and start again, or go on from a checkpoint"
        )
    if isinstance(error, Oversized):
        return DataError(
            f"variable {name!r} of {store}: chunk {oversized()} cannot be read: {error}; the chunk "
            "or the array's metadata is damaged, or was made to exhaust memory: write it again"
        )
    if isinstance(error, MemoryError):
        return DataError(
            f"variable {name!r} at [{where}] of {store} cannot be read: {error}; write it again in "
            "smaller chunks, or give the process more memory"
        )
    return DataError(
        f"variable {name!r} at [{where}] of {store} cannot be read: {type(error).__name__}: "
        f"{error}; its chunk is damaged or out of reach: write it again, or leave it out with .isel"
    )
