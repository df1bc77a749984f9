"""The decoding that a Zarr array's metadata declare: packing, sign, dates, missing values.

The rules are those of the CF conventions as xarray applies them, with two exceptions: integers
without a scale stay integers, and a fill value of 0 of a v2 array, which is Zarr's own default, is
a value. Attributes are read in all the forms in use; one without a certain meaning becomes the
decoding's `problem`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from xarray.backends.zarr import FillValueCoder

from dbdask.data.decoding import Attributes, Decoding, Undecided

_FILLS = ("_FillValue", "missing_value")
_CONVERSION = ("units", "calendar", "dtype")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([uU]?[bBsSlLfFdD]?)\s*")


def decode_declared(
    dtype: np.dtype, attributes: Attributes, zarr_format: int, fill_value: object
) -> Decoding:
    """Return the decoding of a Zarr array's own values."""
    if dtype.kind in "cV":
        return Decoding()  # a caller that wants numbers or labels refuses it
    fills = _fills(dtype, attributes, zarr_format, fill_value)
    if dtype.kind in "iuf":
        try:
            return _numbers(dtype, attributes, fills)
        except Undecided as error:
            return Decoding(problem=str(error))
    if dtype.kind == "b":
        return _flags(attributes, fills)
    if dtype.kind in "USOT":
        return Decoding(missing=tuple(fill for fill in fills if isinstance(fill, str)))
    return Decoding(missing=tuple(fill for fill in fills if isinstance(fill, np.generic)))


def number(value: object) -> int | float | None:
    """Return the number that an attribute holds, alone in an array or as text; None if it is none.

    Examples
    --------
    >>> number([0.01]), number("0.01"), number("1s"), number("0b"), number("east")
    (0.01, 0.01, 1, 0, None)
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple) and len(value) == 1:
        return number(value[0])
    if isinstance(value, str):
        return _number_of_text(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number_of_text(text: str) -> int | float | None:
    """Return a number written as text, also with the letter of its type, as CDL writes it."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    digits, letter = found.groups()
    whole = re.fullmatch(r"[+-]?\d+", digits) and letter.lower() not in ("f", "d")
    return int(digits) if whole else float(digits)


def _fills(
    dtype: np.dtype, attributes: Attributes, zarr_format: int, fill_value: object
) -> list[object]:
    """Return every value that is declared as missing, in the type in which it is declared."""
    found: list[object] = []
    for name in _FILLS:
        for value in listed(attributes.get(name)):
            coded = name == "_FillValue" and zarr_format == 3 and isinstance(value, str)
            found.append(_uncoded(value, dtype) if coded else value)
    # Zarr fills with zero or empty text if its user has chosen nothing: they are no gaps.
    if zarr_format == 2 and fill_value:
        found.append(fill_value.decode() if isinstance(fill_value, bytes) else fill_value)
    return found


def listed(value: object) -> list[Any]:
    """Return what an attribute holds, one by one: an array of all would round some integers.

    Examples
    --------
    >>> listed(3), listed([[1], 2**63, -1]), listed(None)
    ([3], [1, 9223372036854775808, -1], [])
    """
    return [] if value is None else _flat(value)


def _flat(value: object) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [one for part in value for one in _flat(part)]
    return [value]


def _uncoded(value: str, dtype: np.dtype) -> object:
    """Return the fill value that xarray has encoded as text in a v3 store."""
    if dtype.kind not in "fS":
        return value
    try:
        found = FillValueCoder.decode(value, dtype if dtype.kind == "f" else "bytes")
    except Exception:
        return value  # written by another program, as it is
    return found.decode() if isinstance(found, bytes) else found


def _numbers(dtype: np.dtype, attributes: Attributes, fills: list[object]) -> Decoding:
    signs = _signs(dtype, attributes)
    shown = signs or dtype
    packing = _packing(attributes)
    texts = [
        found for fill in fills if isinstance(fill, str) and (found := number(fill)) is not None
    ]
    if any(isinstance(attributes.get(name), str) for name in packing):
        fills, texts = [*fills, *texts], []  # packing is text too, and xarray applies none of it
    missing = _held(shown, dtype, fills)
    doubtful = _in_text(_held(shown, dtype, texts), missing)
    units, declared = attributes.get("units"), attributes.get("dtype")
    is_converted = (
        (isinstance(units, str) and "since" in units)
        or declared == "bool"
        or "timedelta64" in str(declared)
    )
    if shown.kind in "iu" and not packing and not is_converted:
        whole = tuple(int(fill) for fill in missing)
        return Decoding(signs=signs, missing=whole, doubtful=doubtful)
    if shown.kind == "f":
        doubtful += _rounded(shown, fills)
    if not packing and not is_converted and not missing:
        return Decoding(signs=signs, doubtful=doubtful)
    names = [name for name in _CONVERSION if isinstance(attributes.get(name), str)]
    # With a whole scale xarray makes integers of all: they overflow, and have no NaN.
    kept: dict[str, Any] = {name: float(value) for name, value in packing.items()}
    kept |= {name: attributes[name] for name in names}
    if missing:
        kept["_FillValue"] = missing[0]
    return Decoding(attributes=kept, signs=signs, gaps=tuple(missing[1:]), doubtful=doubtful)


def _flags(attributes: Attributes, fills: list[object]) -> Decoding:
    truths = [fill for fill in fills if isinstance(fill, bool | np.bool_ | int | float)]
    missing = tuple({bool(fill) for fill in truths if fill in (0, 1)})
    try:
        packing = _packing(attributes)
    except Undecided as error:
        return Decoding(problem=str(error))
    if not packing:
        return Decoding(missing=missing)
    return Decoding(attributes={n: float(value) for n, value in packing.items()}, gaps=missing)


def _signs(dtype: np.dtype, attributes: Attributes) -> np.dtype | None:
    """Return the dtype of the other sign if `_Unsigned` asks for it, else None.

    Raises
    ------
    Undecided
        `_Unsigned` is neither "true" nor "false".
    """
    declared = attributes.get("_Unsigned")
    if dtype.kind == "f" or declared is None or dtype.kind == _kind_of(declared):
        return None
    if declared not in ("true", "false"):
        raise Undecided(
            f"declares _Unsigned={declared!r}, which must be 'true' or 'false' to be known to "
            "xarray; correct the attribute, or open the store with xarray and give that Dataset"
        )
    return np.dtype(f"{_kind_of(declared)}{dtype.itemsize}")


def _kind_of(declared: object) -> str:
    return "u" if str(declared).strip().lower() in ("true", "1") else "i"


def _held(shown: np.dtype, stored: np.dtype, fills: list[Any]) -> list[Any]:
    """Return the fill values that the dtype can hold, in that dtype; others mask nothing."""
    held: dict[Any, None] = {}
    for fill in _numeric(fills):
        if shown.kind == "f":
            one = _as_float(fill, shown)
            if float(one) == fill:
                held[one] = None
        elif math.isfinite(fill) and fill == int(fill):
            found = _whole(int(fill), shown, stored)
            if found is not None:
                held[shown.type(found)] = None
    return list(held)


def _numeric(fills: list[Any]) -> Iterable[int | float]:
    for fill in fills:
        plain = fill.item() if isinstance(fill, np.generic) else fill
        if isinstance(plain, int | float) and plain == plain:
            yield plain


def _as_float(fill: int | float, dtype: np.dtype) -> Any:
    with np.errstate(over="ignore"):
        try:
            return dtype.type(fill)
        except OverflowError:
            return dtype.type(math.inf)


def _in_text(texts: list[int | float], missing: list[Any]) -> tuple[tuple[Any, str], ...]:
    """Return fills that are declared as text, each with its error: xarray ignores them."""
    said = (
        "holds {0!s}, which may be its declared fill '{0!s}': that is text, so xarray shows the "
        "value; declare it as a number, or give a Dataset"
    )
    return tuple((text, said.format(text)) for text in texts if text not in missing)


def _rounded(dtype: np.dtype, fills: list[Any]) -> tuple[tuple[Any, str], ...]:
    """Return rounded fills, each with its error: xarray compares values with unrounded fills."""
    found = []
    declared = list(_numeric(fills))
    for fill in declared:
        one = _as_float(fill, dtype)
        if float(one) in declared or not math.isfinite(one):
            continue
        said = (
            f"holds {one!s}, which may be its declared fill {fill!r} as {dtype} rounds it: xarray "
            f"shows it as a value; declare {float(one)!r} if it means missing, or give a Dataset"
        )
        found.append((one, said))
    return tuple(found)


def _whole(fill: int, shown: np.dtype, stored: np.dtype) -> int | None:
    """Return the integer as shown, read from the same bytes if the sign differs; else None."""
    if shown != stored and np.iinfo(stored).min <= fill <= np.iinfo(stored).max:
        return int(np.array(fill, stored).view(shown))
    return fill if np.iinfo(shown).min <= fill <= np.iinfo(shown).max else None


def _packing(attributes: Attributes) -> dict[str, int | float]:
    """Return scale and offset as numbers.

    Raises
    ------
    Undecided
        One of them is no finite number, or the scale is 0.
    """
    found: dict[str, int | float] = {}
    for name in ("scale_factor", "add_offset"):
        given = attributes.get(name)
        if given is None:
            continue
        value = number(given)
        if value is None or not math.isfinite(value) or (name == "scale_factor" and value == 0):
            rule = "a finite number" + (" other than 0" if name == "scale_factor" else "")
            raise Undecided(
                f"declares {name}={given!r}, which must be {rule}; correct the attribute, or open "
                "the store with xarray (mask_and_scale=False) and give the values themselves"
            )
        found[name] = value
    return found
