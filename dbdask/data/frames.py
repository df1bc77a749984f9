"""Data frames: the columns of a table, of pandas or of Dask, as the variables of a Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import pandas as pd
import xarray as xr

from dbdask.data.decoding import is_exact
from dbdask.data.pandas_arrays import OBJECT, to_numpy

ROWS = "row"
"""The dimension of the rows of a table."""


class Frame(Protocol):
    """A table of pandas, or of dask.dataframe, which is an extra."""

    @property
    def columns(self) -> Any: ...

    @property
    def dtypes(self) -> Any: ...

    def __getitem__(self, name: str) -> Any: ...


def is_frame(data: object) -> TypeGuard[Frame]:
    """Return whether data is a table of pandas or of dask.dataframe."""
    return isinstance(data, pd.DataFrame) or _is_lazy(data)


def _is_lazy(data: object) -> bool:
    of_dask = type(data).__module__.split(".")[0] in ("dask", "dask_expr")
    return of_dask and all(hasattr(data, name) for name in ("npartitions", "dtypes", "columns"))


def dataset_of(frame: Any) -> xr.Dataset:
    """Return the columns of a table as a Dataset over the dimension `row`.

    The index of a pandas DataFrame becomes the coordinate `row`, but for a MultiIndex. Of a Dask
    DataFrame, the partitions are computed once to learn their lengths.

    Raises
    ------
    TypeError, ValueError
        A column has no text as its name, or the name of another one, or the table has no rows.
    """
    _check_columns([*frame.columns])
    if _is_lazy(frame):
        return _of_partitions(frame)
    if not len(frame):
        raise ValueError("data: the DataFrame has no rows")
    columns = {name: (ROWS, _plain(frame[name])) for name in frame.columns}
    index = frame.index
    coords = {} if isinstance(index, pd.MultiIndex) else {ROWS: index.rename(None)}
    return xr.Dataset(columns, coords)


def _check_columns(columns: Sequence[object]) -> None:
    for column in columns:
        if not isinstance(column, str):
            raise TypeError(
                f"data: the DataFrame has a column {column!r}, and names must be text; rename it "
                "with frame.rename(columns=str)"
            )
        if columns.count(column) > 1:
            raise ValueError(f"data: the DataFrame has two columns {column!r}; rename one")
        if column == ROWS:
            raise ValueError(
                f"data: the DataFrame has a column {ROWS!r}, which is the name of its dimension; "
                "rename it"
            )


def _plain(column: Any) -> Any:
    """Return the values of a column of pandas: as NumPy has them, or an extension array.

    Text becomes categories, which take less memory than objects; xarray has no arrays of text.
    """
    if isinstance(column.dtype, pd.StringDtype):
        return pd.Categorical(column)
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def _of_partitions(frame: Any) -> xr.Dataset:
    lengths = np.asarray(frame.map_partitions(len).compute()).tolist()
    kept = [place for place, length in enumerate(lengths) if length]
    if not kept:
        raise ValueError("data: the DataFrame has no rows")
    if len(kept) < len(lengths):
        frame, lengths = frame.partitions[kept], [lengths[place] for place in kept]
    columns = {}
    for name in frame.columns:
        dtype = _lazy_dtype(frame[name].dtype)
        meta = pd.Series([], dtype=dtype, name=name)
        plain = frame[name].map_partitions(_plain_partition, dtype, meta=meta)
        columns[name] = (ROWS, plain.to_dask_array(lengths=tuple(lengths)))
    return xr.Dataset(columns)


def _lazy_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of NumPy's that holds any partition of a column, missing values included."""
    if isinstance(dtype, np.dtype):
        return dtype
    number = getattr(dtype, "numpy_dtype", None)
    if isinstance(number, np.dtype) and number.kind in "iufb":
        return number if number.kind == "f" else np.dtype(np.float64)
    return OBJECT


def _plain_partition(column: Any, dtype: np.dtype) -> Any:
    """Return a partition of a column as a Series of a dtype of NumPy's."""
    values = _plain(column)
    if isinstance(values, np.ndarray):
        found = values
    elif dtype == OBJECT:
        found = to_numpy(values, OBJECT)
    else:
        found = to_numpy(values)
        if found.dtype.kind in "iuO" and not is_exact(_whole(found)):
            raise ValueError(
                f"data: column {column.name!r} holds integers that float64 cannot hold; give them "
                "as text, or as a column of NumPy's dtypes without missing values"
            )
    return pd.Series(found.astype(dtype), index=column.index, name=column.name)


def _whole(values: np.ndarray) -> np.ndarray:
    """Return the integers among some values, as an array."""
    return np.array([value for value in values.tolist() if isinstance(value, int)], object)


def shown_as(frame: Frame, inputs: Iterable[str], given: str | Mapping[str, str]) -> dict[str, str]:
    """Return how each column of labels among the inputs is shown, by name.

    Text, objects and pandas' categories are labels, and all other columns numbers, unless `given`
    names them. Columns of labels that `given` does not name are shown as "one-hot".

    Examples
    --------
    >>> shown_as(pd.DataFrame({"age": [30], "job": ["baker"]}), ["age", "job"], "codes")
    {'job': 'codes'}
    """
    general = given if isinstance(given, str) else "one-hot"
    found = {name: general for name in inputs if _is_label(frame[name].dtype)}
    return found if isinstance(given, str) else found | dict(given)


def _is_label(dtype: Any) -> bool:
    if isinstance(dtype, np.dtype):
        return dtype.kind in "OUS"
    return isinstance(dtype, pd.CategoricalDtype | pd.StringDtype) or dtype.kind in "OU"


def declared_labels(frame: Frame, column: str) -> list[object] | None:
    """Return the categories that a column of pandas' categories declares; else None."""
    dtype = frame[column].dtype
    if not isinstance(dtype, pd.CategoricalDtype) or dtype.categories is None:
        return None
    known = dtype.categories.tolist()
    return None if "__UNKNOWN_CATEGORIES__" in known else known


def classes_of(
    frame: Any, targets: str | Sequence[str] | None, given: Sequence[object] | None
) -> Sequence[object] | None:
    """Return the classes that a user gave, else those that a single target declares."""
    if given is not None or targets is None:
        return given
    names = [targets] if isinstance(targets, str) else list(targets)
    if len(names) != 1 or names[0] not in frame.columns:
        return None
    return declared_labels(frame, names[0])


def columns_of(
    frame: Frame,
    inputs: Any,
    targets: str | Sequence[str] | None,
    groups: str | None,
    weights: str | None,
) -> Any:
    """Return the inputs that a user gave; None stands for all columns that have no other role.

    Raises
    ------
    TypeError, ValueError
        A name is no text, or no column, or the names of the columns cannot be used.
    """
    columns = [*frame.columns]
    _check_columns(columns)
    taken = [*_names("targets", targets), *_names("groups", groups), *_names("weights", weights)]
    found = [name for name in columns if name not in taken] if inputs is None else inputs
    for name in (*_names("inputs", found), *taken):
        if name not in columns:
            raise ValueError(f"no column {name!r} in the DataFrame; it has: {', '.join(columns)}")
    return found if isinstance(found, Mapping) else _names("inputs", found)


def _names(argument: str, given: Any) -> list[str]:
    """Return the names of columns that a user gave."""
    if given is None:
        return []
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be names of columns, got {name!r}")
    return names
