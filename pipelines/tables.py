"""Tables of numbers, categories and gaps as arrays in Zarr.

What an encoding knows, it has learnt from the training rows. Numbers keep their units and their
gaps; a column with gaps gets a second one that says where they are. A category becomes a column
of 0 and 1 for each level that is not too rare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed

CHUNK = 8192  # rows
MISSING = "(missing)"
LEAST_SHARE = 0.002  # of the rows: a level that is rarer has no column

DIMS = {"numbers": "number", "gaps": "gap", "categories": "category"}

Frame = Any  # a dask DataFrame, which has no types


@dataclass(frozen=True)
class Encoding:
    """How rows of a table become arrays.

    Parameters
    ----------
    target, positive
        The column to predict, and its value, as text, in the rare class.
    numbers
        Columns of numbers.
    gaps
        Those of them that have gaps.
    levels
        The column and the level of each column of 0 and 1.
    share
        Share of the training rows in the rare class.
    """

    target: str
    positive: str
    numbers: tuple[str, ...]
    gaps: tuple[str, ...]
    levels: tuple[tuple[str, str], ...]
    share: float

    def encode(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the arrays of some rows.

        Returns
        -------
        dict
            `numbers`, float32 (rows, numbers), NaN in gaps; `gaps`, uint8 (rows, gaps);
            `categories`, uint8 (rows, levels); `target`, uint8 (rows,), 1 in the rare class.
        """
        texts = {column: texts_of(rows[column]) for column in {name for name, _ in self.levels}}
        levels = [texts[column] == level for column, level in self.levels]
        return {
            "numbers": rows[list(self.numbers)].to_numpy(np.float32, na_value=np.nan),
            "gaps": rows[list(self.gaps)].isna().to_numpy(np.uint8),
            "categories": _columns(levels, len(rows)),
            "target": is_positive(rows[self.target], self.positive).astype(np.uint8),
        }


def _columns(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.uint8) if columns else np.zeros((rows, 0), np.uint8)


def read_table(pattern: str) -> Frame:
    """Return a table of Parquet or CSV files, lazily; a pattern may name several."""
    import dask.dataframe as dd

    if ".csv" in Path(pattern).name:
        packed = pattern.endswith((".gz", ".bz2", ".xz", ".zip"))
        # Whole numbers may have gaps in a part that is not looked at yet.
        return dd.read_csv(pattern, assume_missing=True, blocksize=None if packed else "default")
    return dd.read_parquet(pattern)


def learn_encoding(
    rows: Frame, target: str, positive: str, categories: Sequence[str] = ()
) -> Encoding:
    """Return the encoding that fits training rows.

    Parameters
    ----------
    rows
        The training rows.
    target, positive
        As in `Encoding`.
    categories
        Columns of numbers that are categories. Columns of text always are.

    Raises
    ------
    ValueError
        The table lacks a column, a column is neither numbers nor text, or no row, or every one, is
        positive.
    """
    lacking = [name for name in (target, *categories) if name not in rows.columns]
    if lacking:
        raise ValueError(f"the table has no column {lacking[0]!r}, only {list(rows.columns)}")
    kinds = {name: _kind(name, dtype) for name, dtype in rows.dtypes.items() if name != target}
    named = [name for name, kind in kinds.items() if kind == "category" or name in categories]
    numbers = [name for name in kinds if name not in named]
    found = dask.compute(
        [delayed(_count)(part, numbers, [target, *named]) for part in rows.to_delayed()]
    )[0]
    gaps = np.any([has_gaps for has_gaps, _ in found], axis=0)
    counts = {name: _sum([counts[name] for _, counts in found]) for name in (target, *named)}
    targets = counts[target]
    total, events = int(targets.sum()), int(targets[is_positive(targets.index, positive)].sum())
    if events in (0, total):
        raise ValueError(
            f"{events} of {total} training rows have {target}={positive!r}; its values are "
            f"{texts_of(targets.index)[:5].tolist()}"
        )
    levels = [
        (name, level)
        for name in named
        for level in sorted(texts_of(counts[name].index[counts[name] >= LEAST_SHARE * total]))
    ]
    with_gaps = tuple(name for name, has_gaps in zip(numbers, gaps, strict=True) if has_gaps)
    share = events / total
    return Encoding(target, positive, tuple(numbers), with_gaps, tuple(levels), share)


def _count(
    rows: pd.DataFrame, numbers: list[str], named: list[str]
) -> tuple[np.ndarray, dict[str, pd.Series]]:
    """Return whether each column of numbers has gaps, and how often each value is in the others."""
    gaps = rows[numbers].isna().any().to_numpy(bool)
    return gaps, {name: rows[name].value_counts(dropna=False) for name in named}


def _sum(counts: list[pd.Series]) -> pd.Series:
    together = pd.concat([one.rename_axis("value").astype("int64") for one in counts])
    summed: pd.Series = together.groupby(level=0, dropna=False).sum()
    return summed


def _kind(name: str, dtype: Any) -> str:
    if pd.api.types.is_bool_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_numeric_dtype(dtype):
        return "number"
    if pd.api.types.is_string_dtype(dtype) or pd.api.types.is_object_dtype(dtype):
        return "category"
    raise ValueError(
        f"column {name!r} of dtype {dtype} is neither numbers nor text: convert it, or leave it out"
    )


def is_positive(values: pd.Series | pd.Index, positive: str) -> np.ndarray:
    """Return whether each value, as text, is that of the rare class: bool, (rows,)."""
    return np.asarray(texts_of(values) == positive)


def texts_of(values: pd.Series | pd.Index) -> np.ndarray:
    """Return values as text, (rows,); whole numbers without a point, and `MISSING` for a gap.

    Examples
    --------
    >>> texts_of(pd.Series([1.0, None, 2.5])).tolist()
    ['1', '(missing)', '2.5']
    """
    numbers, different = pd.factorize(values)
    texts = [_text(value) for value in different.tolist()]
    found: np.ndarray = np.array([*texts, MISSING], dtype=object)[numbers]  # a gap is -1
    return found


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def columns_of(encoding: Encoding) -> dict[str, list[str]]:
    """Return the names of the columns of each variable that rows are encoded in."""
    return {
        "numbers": list(encoding.numbers),
        "gaps": list(encoding.gaps),
        "categories": [f"{column}={level}" for column, level in encoding.levels],
    }


def write_arrays(rows: Frame, encoding: Encoding, path: Path, weights: Sequence[float]) -> None:
    """Write the arrays of a table's rows to a Zarr store, in parallel.

    Parameters
    ----------
    rows, encoding
        The table, and how its rows become arrays.
    path
        The store, which is replaced.
    weights
        The weight of an example of the common class, and of the rare one.
    """
    parts = rows.to_delayed()
    lengths = rows.map_partitions(len).compute().tolist()
    encoded = [delayed(encoding.encode)(part) for part in parts]
    columns = columns_of(encoding)
    variables = {}
    for name in (*columns, "target"):
        width = (len(columns[name]),) if name in columns else ()
        dtype = np.float32 if name == "numbers" else np.uint8
        blocks = [
            da.from_delayed(part[name], (length, *width), dtype)
            for part, length in zip(encoded, lengths, strict=True)
        ]
        if 0 not in width:
            dims = ("row", *(DIMS[name] for _ in width))
            array = da.concatenate(blocks).rechunk({0: CHUNK})
            variables[name] = (dims, array, {"columns": columns[name]} if name in columns else {})
    table = np.array(weights, np.float32)
    chosen = variables["target"][1].map_blocks(_chosen, table, dtype=np.float32)
    dataset = xr.Dataset({**variables, "weight": ("row", chosen)})
    dataset.to_zarr(path, mode="w", consolidated=False)


def _chosen(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    found: np.ndarray = table[indices]
    return found
