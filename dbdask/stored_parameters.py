"""Parameters that a checkpoint or a saved result holds, read when they are wanted."""

from dbdask.arrays import Float32Array
from dbdask.rpc.store_calls import call_store
from dbdask.storage.checkpoint import VectorReference


def read_parameters(given: Float32Array | VectorReference, size: int) -> Float32Array:
    """Return the flat vector of `size` float32 parameters; a store gives it in time, or an error.

    Raises
    ------
    CheckpointError, ResultError
        A checkpoint, or a saved result, is damaged, or its store hangs.
    """
    return read_part(given, 0, size) if isinstance(given, VectorReference) else given


def read_part(reference: VectorReference, start: int, stop: int) -> Float32Array:
    """Return a slice of a vector in a store, float32 of (stop - start,), within `dbdask.store`.

    Raises
    ------
    CheckpointError, ResultError
        A checkpoint, or a saved result, is damaged, or its store hangs.
    """
    return call_store(
        f"{reference.argument}={str(reference.path)!r}",
        f"{reference.name} {start} to {stop} were read",
        reference.read,
        start,
        stop,
        error=reference.error,
        nbytes=4 * (stop - start),
    )
