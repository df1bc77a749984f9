"""Calls that use a store: each ends within `dbdask.store`, or an error names the store."""

from collections.abc import Callable
from typing import TypeVar

from dbdask.daemon_threads import DeadlinePassed, call_within
from dbdask.rpc.deadlines import deadline

T = TypeVar("T")


def call_store(
    place: str,
    doing: str,
    function: Callable[..., T],
    *arguments: object,
    error: type[Exception],
    nbytes: int = 0,
) -> T:
    """Call a function that uses a store, within `dbdask.store`, and return its result.

    The call runs on a daemon thread, so Ctrl-C ends the wait at once. A warning every 20 s says
    what is waited for.

    Parameters
    ----------
    place
        Names the store: the argument and its value.
    doing
        Says what is done, in words that follow "while".
    function, arguments
        The call.
    error
        The type of the error that a passed deadline raises.
    nbytes
        Bytes that the call reads or writes; they lengthen the deadline.

    Raises
    ------
    Exception
        Of type `error`: the deadline has passed. Or what the function raises.
    """
    seconds = round(deadline("store", nbytes), 1)
    try:
        return call_within(
            seconds, function, *arguments, what=f"an answer of {place} while {doing}"
        )
    except DeadlinePassed as passed:
        raise error(
            f"{place} gave no answer in {seconds:g} s (dbdask.store) while {doing}: its store "
            "hangs, or needs a longer dbdask.store"
        ) from passed
