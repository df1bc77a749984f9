"""The length of the chunks in which a stored vector is cut."""

MOST_STORED = 2**22
"""Elements of a chunk, at most: 16 MiB of float32. A chunk is copied while it is encoded."""


def stored_chunk(length: int) -> int:
    """Return the length of the chunks in which slices of a length are stored.

    Examples
    --------
    >>> stored_chunk(1000), stored_chunk(2**22 + 1)
    (1000, 2097153)
    """
    return -(-length // -(-length // MOST_STORED))
