"""How often, and after which pauses, a read is tried whose failure may pass."""

MOST_TRIES = 5
FIRST_PAUSE = 0.1
"""Seconds before the second try; each pause after it is twice as long."""


def pause_after(failures: int) -> float | None:
    """Return the seconds to wait after a number of failures; None if there is no further try.

    Examples
    --------
    >>> [pause_after(failures) for failures in (1, 2, 3, 4, 5)]
    [0.1, 0.2, 0.4, 0.8, None]
    """
    return None if failures >= MOST_TRIES else FIRST_PAUSE * 2 ** (failures - 1)
