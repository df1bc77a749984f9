"""Checks of a model that need no data: its layout, its pickle, its initial parameters."""

from collections.abc import Iterator
from itertools import pairwise

import cloudpickle
import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.layout import Layout, as_layout, check_dims
from dbdask.models.model import Model, check_members


def listed_faults(faults: list[str]) -> str:
    """Return the text of an error that names every fault."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    numbered = "\n".join(f"  {n}. {fault}" for n, fault in enumerate(faults, 1))
    return f"the model does not keep the dbdask.Model contract, {count}:\n{numbered}"


def checked_layout(model: Model) -> Layout:
    """Return a model's layout.

    Raises
    ------
    ModelError
        The model lacks a member, or its layout is wrong or changes.
    """
    try:
        check_members(model)
        layout, again = as_layout(model.layout), as_layout(model.layout)
        check_dims(layout)
    except (TypeError, ValueError) as error:
        raise ModelError(listed_faults([str(error)])) from error
    if layout != again:
        raise ModelError(listed_faults(["model.layout must be the same whenever it is asked"]))
    return layout


def travelled(model: Model, layout: Layout, faults: list[str]) -> Model:
    """Return the copy of a model that a worker would get; add what is wrong with it to `faults`.

    A model that cannot be pickled is returned as it is.
    """
    try:
        copy: Model = cloudpickle.loads(cloudpickle.dumps(model))
        again = as_layout(copy.layout)
    except Exception as error:
        faults.append(f"model cannot be pickled, and travels to every worker so: {error!r}")
        return model
    if again != layout:
        faults.append(
            "model has another layout after it was pickled: keep all that it needs in its state"
        )
    return copy


def initial_faults(model: Model, layout: Layout, seed: int) -> list[str]:
    """Return what is wrong with the initial vector, whole and in slices: at most one fault."""
    size = layout.size
    try:
        whole = np.asarray(model.initial_parameters(seed, 0, size))
        again = np.asarray(model.initial_parameters(seed, 0, size))
        wrong = next(_slice_faults(whole, 0, size), None)
        if wrong is None and not np.array_equal(whole, again):
            wrong = (
                "model.initial_parameters gives other numbers for the same seed: draw them from "
                "np.random.default_rng(seed)"
            )
        wrong = wrong or _cut_fault(model, layout, seed, whole)
    except Exception as error:
        wrong = f"model.initial_parameters raised {error!r}"
    return [wrong] if wrong else []


def _cut_fault(model: Model, layout: Layout, seed: int, whole: np.ndarray) -> str | None:
    """Return the fault of a slice, asked for as shards do, that differs from the whole vector."""
    size = layout.size
    edges = sorted({0, 1, size // 3, size - 1, size, *layout.offsets[:8]})
    for start, stop in pairwise(edges):
        part = np.asarray(model.initial_parameters(seed, start, stop))
        wrong = next(_slice_faults(part, start, stop), None)
        if wrong:
            return wrong
        if not np.array_equal(part, whole[start:stop]):
            return (
                f"model.initial_parameters depends on the cut: elements {start} to {stop} asked "
                "alone are not those of the whole vector; draw each number from the seed and its "
                "place, or draw the whole vector and return whole[start:stop]"
            )
    return None


def _slice_faults(values: np.ndarray, start: int, stop: int) -> Iterator[str]:
    asked = f"model.initial_parameters(seed, {start}, {stop})"
    if values.shape != (stop - start,):
        yield f"{asked} must have shape ({stop - start},), got {values.shape}"
    elif values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        yield f"{asked} must hold finite numbers, got {values.dtype} {values[:3]}..."


def checked_initial(values: object, layout: Layout, start: int, stop: int) -> Float32Array:
    """Return a slice of a model's initial vector as a new float32 array, (stop - start,).

    Parameters
    ----------
    values
        The slice that the model returned.
    layout
        The model's layout.
    start, stop
        The slice that the model was asked for.

    Raises
    ------
    ModelError
        The slice has another shape, holds no real numbers, or is not finite: names the parameter.
    """
    given = np.asarray(values)
    if given.shape != (stop - start,) or given.dtype.kind not in "iuf":
        raise ModelError(next(_slice_faults(given, start, stop)))
    with np.errstate(over="ignore"):
        vector = np.array(given, dtype=np.float32)
    bad = _not_finite(vector, layout, start)
    if bad:
        raise ModelError(
            f"model.initial_parameters(seed, {start}, {stop}) must hold finite numbers in float32, "
            f"but {bad!r} holds NaN or infinity"
        )
    return vector


def _not_finite(vector: Float32Array, layout: Layout, start: int) -> str:
    """Return the first trained parameter with an element that is not finite; "" if none has."""
    stop = start + vector.size
    for parameter, offset in zip(layout.parameters, layout.offsets, strict=True):
        first, last = max(offset, start), min(offset + parameter.size, stop)
        is_held = parameter.kind == "trained" and first < last
        if is_held and not np.isfinite(vector[first - start : last - start]).all():
            return parameter.name
    return ""


def starting_point(model: Model, layout: Layout, seed: int) -> Float32Array:
    """Return a point near the initial one, where no trained parameter is zero: float32, (size,)."""
    point = np.zeros(layout.size, np.float32)
    try:
        point[:] = model.initial_parameters(seed, 0, layout.size)
    except Exception:
        point[:] = 0  # `initial_faults` has noted the error; other checks start from here
    np.nan_to_num(point, copy=False, posinf=0, neginf=0)
    rng = np.random.default_rng(seed)
    for start, stop in layout.trained:
        typical = max(float(np.sqrt(np.mean(np.square(point[start:stop], dtype=float)))), 0.05)
        point[start:stop] += rng.normal(scale=0.2 * typical, size=stop - start)
    return point
