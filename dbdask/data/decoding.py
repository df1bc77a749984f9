"""From stored values to numbers: packed integers, missing values, labels.

The rules are those of the CF conventions as xarray applies them, with one exception: integers
without a scale stay integers, and the fill value of a Zarr array is no missing value for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.zarr import FillValueCoder

from dbdask.errors import DataError

_PACKING = ("scale_factor", "add_offset", "_Unsigned")
_FILLS = ("_FillValue", "missing_value")
_CF = (*_PACKING, *_FILLS, "units", "calendar", "dtype")


@dataclass(frozen=True)
class Decoding:
    """How the stored values of one variable become values and a mask of what is missing.

    Parameters
    ----------
    attributes
        The CF attributes that are still to be applied to the stored values.
    missing
        Stored integers that mean "missing"; for variables that stay integers.
    restored
        For values that xarray has made floats although they are integers: their true dtype.
    fill
        The integer that stands where the value is missing, or was taken for missing.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    restored: np.dtype | None = None
    fill: int | None = None

    @property
    def is_plain(self) -> bool:
        """True where the values are stored as they are meant."""
        return not self.attributes

    def result_dtype(self, stored: np.dtype) -> np.dtype:
        """Return the dtype of the values that `apply` gives."""
        if self.restored is not None:
            return self.restored
        return self.apply(np.zeros(1, stored), check=False)[0].dtype

    def apply(self, stored: np.ndarray, check: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the values and the mask of missing ones (None: nothing is missing)."""
        if self.restored is not None:
            return self._restore(stored, check)
        if self.attributes:
            stored = self.as_xarray(stored)
        kind = stored.dtype.kind
        if kind == "b":
            return stored.astype(np.int8), None
        if kind in "iu":
            return self._integers(stored)
        if kind == "f":
            with np.errstate(over="ignore"):
                values = stored.astype(np.float32, copy=False)
            return values, _any(np.isnan(stored))
        if kind in "mM":
            return stored, _any(np.isnat(stored))
        if kind in "USOT":
            return _text(stored)
        raise TypeError(f"values of dtype {stored.dtype} cannot be used; give real numbers or text")

    def as_xarray(self, stored: np.ndarray) -> np.ndarray:
        """Return the values as xarray shows them: its own arithmetic, its own dtypes."""
        if self.is_plain:
            return stored
        dims = tuple(f"dim_{axis}" for axis in range(stored.ndim))
        raw = xr.Variable(dims, stored, self.attributes)
        return np.asarray(xr.conventions.decode_cf_variable("values", raw).values)

    def _integers(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.missing:
            return stored, None
        mask = _any(np.isin(stored, np.array(self.missing, stored.dtype)))
        if mask is None or len(self.missing) == 1:
            return stored, mask
        return np.where(mask, stored.dtype.type(self.fill), stored), mask

    def _restore(self, stored: np.ndarray, check: bool) -> tuple[np.ndarray, np.ndarray | None]:
        assert self.restored is not None and self.fill is not None
        mask = np.isnan(stored)
        filled = np.where(mask, self.fill, stored)
        values = filled.astype(self.restored)
        if check and not np.array_equal(values, filled):
            raise DataError(
                f"values declared as {self.restored} in the Dataset's encoding are no whole "
                "numbers; drop the encoding with dataset.drop_encoding()"
            )
        return values, self._integers(values)[1]


def decode_stored(
    dtype: np.dtype, attributes: Mapping[str, Any], zarr_format: int, fill_value: Any
) -> Decoding:
    """Return the decoding of a Zarr array's own values."""
    pending = {name: attributes[name] for name in _CF if name in attributes}
    if zarr_format == 3 and isinstance(pending.get("_FillValue"), str) and dtype.kind in "fcS":
        pending["_FillValue"] = FillValueCoder.decode(pending["_FillValue"], dtype)
    if zarr_format == 2 and fill_value is not None and _masks(dtype, pending, fill_value):
        pending["_FillValue"] = fill_value
    return _decoding(dtype, pending)


def decode_opened(variable: xr.Variable, declared: Mapping[str, Any] | None = None) -> Decoding:
    """Return what is left to do for a variable that xarray has opened, or a user has made.

    `declared` are the attributes of its array in a v2 store, where they can be had: the Dataset
    itself does not tell whether a fill value was declared there or is Zarr's own.
    """
    pending = {name: variable.attrs[name] for name in _CF if name in variable.attrs}
    encoding = variable.encoding
    of_zarr = is_format_2(encoding)
    if of_zarr and variable.dtype.kind in "iu" and not _is_packed(pending):
        pending.pop("_FillValue", None)
        pending.update({name: declared[name] for name in _FILLS if declared and name in declared})
    true, fills = encoding.get("dtype"), _fills(encoding)
    was_integer = isinstance(true, np.dtype) and true.kind in "iu" and not _is_packed(encoding)
    if variable.dtype.kind != "f" or not was_integer or not fills:
        return _decoding(variable.dtype, pending)
    if not of_zarr:
        return Decoding(restored=true, missing=fills, fill=fills[0])
    # xarray has masked both; where they differ, a gap must stay a gap.
    gaps = _fills({"missing_value": encoding.get("missing_value")})
    missing = tuple(dict.fromkeys((*_fills(declared or {}), *gaps)))
    return Decoding(restored=true, missing=missing, fill=(gaps or fills)[0])


def _decoding(dtype: np.dtype, pending: dict[str, Any]) -> Decoding:
    if dtype.kind in "iu" and not _is_packed(pending) and not _is_converted(pending):
        fills = _fills(pending)
        return Decoding(missing=fills, fill=fills[0] if fills else None)
    if dtype.kind not in "iufb":
        return Decoding()
    wanted = {*_PACKING, *_FILLS} | ({"units", "calendar", "dtype"} & set(pending))
    if not _is_converted(pending):
        wanted -= {"units", "calendar", "dtype"}
    kept = {name: value for name, value in pending.items() if name in wanted}
    if dtype.kind == "f" and set(kept) == {"_FillValue"} and np.isnan(kept["_FillValue"]):
        return Decoding()
    return Decoding(attributes=kept)


def _masks(dtype: np.dtype, pending: Mapping[str, Any], fill_value: Any) -> bool:
    """Say whether the fill value of a v2 array means "missing", as it does for xarray."""
    if _is_packed(pending) or _is_time(pending):
        return True
    # Zero is what Zarr fills with where nobody chose anything: black pixels are no gaps.
    return dtype.kind == "f" and fill_value != 0 and "_FillValue" not in pending


def _fills(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    found = [attributes[name] for name in _FILLS if attributes.get(name) is not None]
    values = [value for entry in found for value in np.atleast_1d(entry).tolist()]
    return tuple(dict.fromkeys(int(value) for value in values if value == value))


def is_format_2(encoding: Mapping[str, Any]) -> bool:
    """Say whether a Dataset's variable came from Zarr v2, where `_FillValue` is Zarr's own.

    xarray notes compressors for Zarr only, and a `serializer` for format 3 only.
    """
    return ("compressors" in encoding or "compressor" in encoding) and "serializer" not in encoding


def _is_packed(attributes: Mapping[str, Any]) -> bool:
    return any(name in attributes for name in _PACKING)


def _is_time(attributes: Mapping[str, Any]) -> bool:
    units = attributes.get("units")
    return isinstance(units, str) and " since " in units


def _is_converted(attributes: Mapping[str, Any]) -> bool:
    declared = attributes.get("dtype")
    return _is_time(attributes) or declared == "bool" or "timedelta64" in str(declared)


def _any(mask: np.ndarray) -> np.ndarray | None:
    return mask if mask.any() else None


def _text(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    flat = stored.astype(object)
    if stored.dtype.kind == "S":
        flat = np.char.decode(stored, "utf-8").astype(object)
    mask = np.array([not isinstance(value, str) for value in flat.ravel()], dtype=bool)
    mask = mask.reshape(flat.shape)
    return np.where(mask, "", flat).astype(str), _any(mask)
