"""Values of every kind that a variable may hold, drawn at random."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")
TEXTS = ("fixed", "text", "string", "bytes")
TIMES = ("date", "duration")
NULLABLE = ("Int64", "UInt8", "Float32", "Float64", "boolean")
CATEGORICAL = ("categorical text", "categorical number")
ONE_DIMENSIONAL = (*NULLABLE, *CATEGORICAL)
"""Kinds that only pandas has: xarray holds them in one dimension, and in memory."""

WORDS = ("", "a", "sea ice", "Äö", "1", "nan", "None", "zz", "b")
NEAR_EDGES = (0, 1, 2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1)


def choose(rng: np.random.Generator, options: Sequence[Any], weights: Any = None) -> Any:
    """Draw one of the options; NumPy would turn them into its own types."""
    if weights is not None:
        weights = np.asarray(weights, float) / np.sum(weights)
    return options[int(rng.choice(len(options), p=weights))]


def draw_values(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Any:
    """Draw values of a kind: a NumPy array, or a pandas array of one dimension."""
    if kind in INTEGERS:
        return _integers(rng, np.dtype(kind), shape)
    if kind in FLOATS:
        return _floats(rng, np.dtype(kind), shape)
    if kind == "bool":
        return rng.random(shape) < 0.5
    if kind in TEXTS:
        return as_text(rng, kind, np.array(WORDS, object)[rng.integers(0, len(WORDS), shape)])
    if kind in TIMES:
        return as_time(rng, kind, rng.integers(0, 5000, shape))
    assert len(shape) == 1 and kind in ONE_DIMENSIONAL
    return as_pandas(rng, kind, rng.integers(0, 6, shape))


def _integers(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    limits = np.iinfo(dtype)
    how = choose(rng, ("few", "whole range", "edges"), (6, 1, 2))
    if how == "few":
        return rng.integers(0, 7, shape).astype(dtype)
    if how == "whole range":
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    near = [n for n in (*NEAR_EDGES, limits.max, limits.max - 1, limits.min) if n <= limits.max]
    return np.array(near, dtype)[rng.integers(0, len(near), shape)]


def _floats(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    how = choose(rng, ("normal", "constant", "offset", "whole"), (6, 1, 2, 1))
    values = rng.normal(size=shape)
    if how == "constant":
        values = np.full(shape, 0.1)
    if how == "whole":
        values = rng.integers(0, 5, shape) + (0.0 if dtype == np.float16 else 20240101.0)
    if how == "offset" and dtype == np.float64:
        values = values + choose(rng, (280.0, 5.4e6, 1.7e9, 2460000.5))
    values = values.astype(dtype)
    if rng.random() < 0.25:
        values[rng.random(shape) < 0.1] = np.nan
    if rng.random() < 0.03:
        values[rng.random(shape) < 0.05] = choose(rng, (np.inf, -np.inf))
    return values


def as_text(rng: np.random.Generator, kind: str, words: np.ndarray) -> np.ndarray:
    """Return words, an object array of text, as one of the ways in which NumPy holds text."""
    if kind == "bytes":
        return np.char.encode(words.astype(str), "utf-8")
    if kind == "string":
        return words.astype(np.dtypes.StringDType())
    if kind == "fixed":
        return words.astype(str)
    words = words.copy()
    if rng.random() < 0.3:
        words[rng.random(words.shape) < 0.1] = None
    return words


def as_time(rng: np.random.Generator, kind: str, days: np.ndarray) -> np.ndarray:
    """Return whole days as dates or durations, some of them missing."""
    values = days.astype("m8[D]").astype("m8[ns]")
    if kind == "date":
        values = values + np.datetime64("2001-03-01", "ns")
    if rng.random() < 0.2:
        values[rng.random(days.shape) < 0.1] = "NaT"
    return values


def as_pandas(rng: np.random.Generator, kind: str, numbers: np.ndarray) -> Any:
    """Return small whole numbers as an array of pandas, some of them missing."""
    gaps = rng.random(len(numbers)) < choose(rng, (0.0, 0.1), (2, 1))
    if kind == "categorical text":
        words = np.array(["", "a", "b", "sea ice", "Äö", "zz"], object)[numbers]
        return pd.Categorical(np.where(gaps, None, words))
    if kind == "categorical number":
        return pd.Categorical(pd.array(np.where(gaps, None, numbers * 7), dtype="Int64"))
    values = numbers % 2 if kind == "boolean" else numbers
    return pd.array(np.where(gaps, None, values.astype(object)), dtype=kind)
