"""Buffers of a model: elements of the flat vector that a minibatch changes, and no optimiser."""

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.layout import Layout
from dbdask.models.model import Model
from dbdask.users_code import UsersCode


def updated_ranges(model: Model, layout: Layout) -> tuple[tuple[int, int], ...]:
    """Return the ranges of the flat vector that hold buffers which training changes."""
    if not hasattr(model, "updated_buffers"):
        return ()
    return tuple((part.start, part.stop) for part in buffer_ranges(layout))


def buffer_ranges(layout: Layout) -> list[slice]:
    """Return the ranges of the flat vector that are not trained."""
    ends = [0, *(edge for trained in layout.trained for edge in trained), layout.size]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return [slice(start, stop) for start, stop in pairs if start < stop]


class BufferUpdates:
    """The buffers that the minibatches of one task change.

    Parameters
    ----------
    model
        The model.
    layout
        Its layout.
    """

    def __init__(self, model: Model, layout: Layout) -> None:
        self._model, self._layout = model, layout
        self.ranges = [slice(*ends) for ends in updated_ranges(model, layout)]
        self._changed: dict[str, Float32Array] = {}

    def take(self) -> str:
        """Take what the model's last minibatch changed; return the name of a bad buffer, or "".

        A bad one is not finite.

        Raises
        ------
        ModelError
            The model returned something else than buffers of its layout.
        """
        self._changed = {}
        if not self.ranges:
            return ""
        with UsersCode("model.updated_buffers"):
            returned = self._model.updated_buffers()  # type: ignore[attr-defined]
        self._changed = checked_buffers(returned, self._layout)
        return next((n for n, v in self._changed.items() if not np.isfinite(v).all()), "")

    def write(self, vector: Float32Array) -> None:
        """Write the values that were taken into their places of a vector, float32 (n,)."""
        if self._changed:
            views = self._layout.views(vector)
            for name, values in self._changed.items():
                views[name][...] = values

    def write_change(self, vector: Float32Array, point: Float32Array, weight: float) -> None:
        """Set the buffers' elements of a vector to `weight` times their change since `point`.

        Both vectors are float32 (n,). A buffer that did not change has a change of exactly 0.
        """
        for part in self.ranges:
            vector[part] = point[part]
        self.write(vector)
        for part in self.ranges:
            vector[part] -= point[part]
            vector[part] *= np.float32(weight)

    def copy(self, vector: Float32Array, source: Float32Array) -> None:
        """Copy the buffers' elements of one vector into another: both float32 (n,)."""
        for part in self.ranges:
            vector[part] = source[part]


def checked_buffers(returned: object, layout: Layout) -> dict[str, Float32Array]:
    """Return what `updated_buffers` returned, as float32 arrays by name.

    Raises
    ------
    ModelError
        It is no dictionary, or an array is of no buffer, or has another shape.
    """
    shapes = {p.name: p.shape for p in layout.parameters if p.kind == "buffer"}
    if not hasattr(returned, "items"):
        raise ModelError(
            "model.updated_buffers must return a dictionary of the buffers that have changed, got "
            f"{returned!r}"
        )
    found = {name: np.asarray(values) for name, values in returned.items()}
    for name, values in found.items():
        if name not in shapes:
            raise ModelError(
                f"model.updated_buffers returned {name!r}, and the buffers of model.layout are "
                f"{', '.join(map(repr, shapes)) or 'none'}"
            )
        if values.shape != shapes[name] or values.dtype.kind not in "biuf":
            raise ModelError(
                f"model.updated_buffers must return {name!r} as numbers of shape {shapes[name]}, "
                f"got {values.dtype} of shape {values.shape}"
            )
    return {name: values.astype(np.float32) for name, values in found.items()}
