"""Parameters that a checkpoint or a saved result holds, read when they are wanted."""

from functools import partial

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.data.memory import has_room_for_vector, memory_limit
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.models.network import Network
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.rpc.store_calls import call_store
from dbdask.storage.checkpoint import VectorReference


def model_with(
    model: Model, given: Float32Array | VectorReference
) -> tuple[Model | PiecewiseNetwork, Float32Array]:
    """Return a model, and the flat vector, float32 (parameters,), for its methods.

    A stored vector that is too large for this process is not read: a `Network` then reads pieces of
    it whenever it predicts, and its vector is empty. Any other model gets the whole of it.

    Raises
    ------
    CheckpointError, ResultError
        A checkpoint, or a saved result, is damaged, or its store hangs.
    """
    size = as_layout(model.layout).size
    if has_room_for_vector(size, memory_limit()) or not isinstance(model, Network):
        return model, read_parameters(given, size)
    if not isinstance(given, VectorReference):
        return model, given
    return PiecewiseNetwork(model, partial(read_part, given)), np.empty(0, np.float32)


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
