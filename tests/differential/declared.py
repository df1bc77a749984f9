"""What the arrays of a Zarr store declare, read from the public rules and not from any code.

Missing is what `_FillValue` or `missing_value` say, and in a v2 store a fill value other than 0.
A fill that the dtype cannot hold masks nothing. Integers without a scale stay integers. All else
is as xarray decodes it. Attributes that make no sense have several readings, or none.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr

Reading = tuple[np.ndarray, np.ndarray, bool]
"""Values, what of them is missing, and whether this is certain."""

FILLS = ("_FillValue", "missing_value")
PACKING = ("scale_factor", "add_offset", "_Unsigned")


def dims_of(array: zarr.Array) -> tuple[str, ...]:
    """Return the names of an array's dimensions."""
    if array.metadata.zarr_format == 3:
        return tuple(array.metadata.dimension_names or ())
    return tuple(array.attrs["_ARRAY_DIMENSIONS"])


def readings(
    dims: tuple[str, ...],
    stored: np.ndarray,
    attrs: Mapping[str, Any],
    zarr_format: int,
    array_fill: Any,
) -> list[Reading]:
    """Return how stored values may be read, the best reading first."""
    nothing = np.zeros(stored.shape, bool)
    if stored.dtype.kind not in "iuf":
        return [(stored, nothing, True)]
    fills, doubtful = declared_fills(stored.dtype, attrs, zarr_format, array_fill)
    mask = masked(stored, fills)
    masks = [(mask, not doubtful)]
    if doubtful:
        masks.append((masked(stored, [*fills, *doubtful]), False))
    time = " since " in str(attrs.get("units", "")) or "dtype" in attrs
    if not time and not any(name in attrs for name in PACKING):
        return [(stored, mask, certain) for mask, certain in masks]
    return [one for mask, certain in masks for one in _decoded(dims, stored, attrs, mask, certain)]


def declared_fills(
    dtype: np.dtype, attrs: Mapping[str, Any], zarr_format: int, array_fill: Any
) -> tuple[list[Any], list[Any]]:
    """Return the numbers that mean missing, and those that may be meant to."""
    sure: list[Any] = []
    doubtful: list[Any] = []
    for name in FILLS:
        given = attrs.get(name)
        several = given if isinstance(given, list) else [given]
        for one in several:
            if isinstance(one, str):
                doubtful += _of_text(one, dtype, name == "_FillValue" and zarr_format == 3)
            elif isinstance(one, int | float) and one == one:
                sure.append(one)
        if len(several) > 1 and name == "_FillValue":
            doubtful, sure = [*doubtful, *several], [n for n in sure if n not in several]
    unsigned = str(attrs.get("_Unsigned", "")).lower()
    if unsigned == "true" and dtype.kind == "i":
        bits = 8 * dtype.itemsize
        sure = [n - 2**bits if n >= 2 ** (bits - 1) else n for n in sure]
    if unsigned == "false" and dtype.kind == "u":
        bits = 8 * dtype.itemsize
        sure = [n + 2**bits if n < 0 else n for n in sure]
    if zarr_format == 2 and array_fill is not None and array_fill != 0:
        sure.append(array_fill.item() if hasattr(array_fill, "item") else array_fill)
    return sure, doubtful


def _of_text(text: str, dtype: np.dtype, encoded: bool) -> list[Any]:
    """Read a number out of text; in a v3 store floats are written in base 64."""
    if encoded and dtype.kind == "f":
        try:
            raw = base64.standard_b64decode(text)
            return [float(np.frombuffer(raw, "<f8")[0])] if len(raw) == 8 else []
        except (binascii.Error, ValueError):
            pass
    try:
        return [int(text)]
    except ValueError:
        pass
    try:
        return [float(text)]
    except ValueError:
        return []


def masked(stored: np.ndarray, fills: list[Any]) -> np.ndarray:
    """Say which stored values are one of the fills, in their own dtype."""
    mask = np.isnan(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
    for fill in fills:
        if stored.dtype.kind == "f":
            with np.errstate(over="ignore"):
                mask |= stored == stored.dtype.type(fill)
        elif fill == fill and abs(fill) != np.inf and fill == int(fill):
            limits = np.iinfo(stored.dtype)
            if limits.min <= int(fill) <= limits.max:
                mask |= stored == stored.dtype.type(int(fill))
    return mask


def _decoded(
    dims: tuple[str, ...],
    stored: np.ndarray,
    attrs: Mapping[str, Any],
    mask: np.ndarray,
    certain: bool,
) -> list[Reading]:
    """Unpack as xarray does, the mask aside; where it fails, numbers given as text are numbers."""
    kept = {n: v for n, v in attrs.items() if n not in FILLS and n != "valid_range"}
    for name in ("scale_factor", "add_offset"):
        if type(kept.get(name)) is int:
            kept[name] = float(kept[name])  # with an integer xarray lets integers overflow
    sane = certain and all(_is_sane(name, kept[name]) for name in PACKING if name in kept)
    found: list[Reading] = []
    for tried in (kept, _with_numbers(kept)):
        try:
            variable = xr.Variable(dims, stored, tried)
            values = xr.conventions.decode_cf_variable("values", variable).to_numpy()
        except Exception:  # of every kind: xarray promises none for attributes without sense
            continue
        if values.dtype.kind in "iufmM" and not any(_alike(values, one[0]) for one in found):
            found.append((values, mask, sane))
    if not found:
        found.append((np.full(stored.shape, np.nan), np.ones(stored.shape, bool), False))
    return found


def _alike(values: np.ndarray, others: np.ndarray) -> bool:
    return values.dtype == others.dtype and np.array_equal(values, others, equal_nan=True)


def _is_sane(name: str, value: Any) -> bool:
    if name == "_Unsigned":
        return value in ("true", "false")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and np.isfinite(value) and not (name == "scale_factor" and value == 0)


def _with_numbers(attrs: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(attrs)
    for name in ("scale_factor", "add_offset"):
        value = found.get(name)
        value = value[0] if isinstance(value, list) else value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                found.pop(name)
                continue
        if name in found:
            found[name] = value
    return found
