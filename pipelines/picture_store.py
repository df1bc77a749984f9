"""Labelled pictures in Zarr: read, varied and written in parallel by Dask, chunk by chunk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client

from pipelines.picture_sources import Batch, Pictures

CHUNK_BYTES = 1 << 21
MOST_ROWS = 1024
"""Pictures of a chunk, at most: chunks are mixed in memory, and many small ones mix better."""
LEAST_ROWS = 16
TASKS_A_THREAD = 4
FARTHEST = 14
"""A varied picture is shifted by up to one row and column in so many."""


@dataclass
class Written:
    """What became of a source."""

    path: Path
    pictures: int
    """In the store, all copies counted."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """The names of those that could not be read, and why."""


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a source go: `rows` of a chunk, `copies` of each picture."""

    rows: int
    copies: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], copies: int) -> "Layout":
        """Return the layout of pictures of a shape; rows of a chunk are a multiple of copies."""
        rows = min(MOST_ROWS, max(LEAST_ROWS, CHUNK_BYTES // int(np.prod(shape))))
        return cls(max(1, rows // copies) * copies, copies)

    @property
    def pictures(self) -> int:
        """Pictures of the source whose copies fill a chunk."""
        return self.rows // self.copies


def write(
    client: Client,
    pictures: Pictures,
    path: Path,
    classes: tuple[str, ...],
    copies: int = 1,
    seed: int = 0,
) -> Written:
    """Write all pictures of a source to a store that replaces what is there.

    Parameters
    ----------
    client
        Its workers read and write.
    pictures
        The source.
    path
        Of the store, which has `pixels` (image, row, column, channel), `label` (image,) with the
        names of the classes, and `file` (image,).
    classes
        Their names, by label.
    copies
        Of each picture: the first as it is, the others mirrored or shifted a little.
    seed
        Draws how the copies differ.

    Raises
    ------
    ValueError
        No picture can be read.
    """
    layout, total = Layout.of(pictures.shape, copies), len(pictures)
    _create(path, total * copies, layout, pictures.shape, classes)
    chunks = -(-total // layout.pictures)
    threads = sum(client.nthreads().values())
    each = -(-chunks // max(1, TASKS_A_THREAD * threads)) * layout.pictures
    runs = [
        client.submit(
            _write_run,
            pictures.part(start, min(start + each, total)),
            str(path.absolute()),
            layout,
            start,
            seed,
            pure=False,
        )
        for start in range(0, total, each)
    ]
    filled: list[tuple[int, int]] = []
    broken: list[tuple[str, str]] = []
    for of_run, of_broken in client.gather(runs):
        filled += of_run
        broken += of_broken
    if len(broken) == total:
        name, why = broken[0]
        raise ValueError(f"none of the {total} pictures can be read; of {name}: {why}")
    _close_gaps(path, filled)
    return Written(path, sum(stop - start for start, stop in filled), broken)


def _create(
    path: Path,
    rows: int,
    layout: Layout,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
) -> None:
    group = zarr.open_group(path, mode="w", attributes={"title": "labelled pictures"})
    along: dict[str, Any] = {"dimension_names": ["image"], "shape": (rows,)}
    group.create_array(
        "pixels",
        shape=(rows, *shape),
        chunks=(layout.rows, *shape),
        dtype="uint8",
        dimension_names=["image", "row", "column", "channel"],
    )
    meanings: dict[str, Any] = {
        "flag_values": list(range(len(classes))),
        "flag_meanings": list(classes),
    }
    group.create_array("label", dtype="int32", chunks=(layout.rows,), attributes=meanings, **along)
    group.create_array("file", dtype=str, chunks=(layout.rows,), **along)


def _write_run(
    pictures: Pictures, path: str, layout: Layout, first: int, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[str, str]]]:
    """Write pictures from number `first` on; return which rows are filled, and what is broken.

    A run that is repeated writes the same to the same chunks.
    """
    group = zarr.open_group(path, mode="r+")
    filled: list[tuple[int, int]] = []
    broken: list[tuple[str, str]] = []
    for number, batch in enumerate(pictures.batches(layout.pictures)):
        row = first * layout.copies + number * layout.rows
        varied = _with_copies(batch, layout.copies, np.random.default_rng((seed, row)))
        stop = row + len(varied["pixels"])
        for name, values in varied.items():
            group[name][row:stop] = values  # type: ignore[index]
        filled.append((row, stop))
        broken += batch.broken
    return filled, broken


def _with_copies(batch: Batch, copies: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the arrays of a batch and of its copies, one after the other."""
    pixels = [batch.pixels, *(vary(batch.pixels, rng) for _ in range(copies - 1))]
    return {
        "pixels": np.concatenate(pixels),
        "label": np.tile(batch.labels, copies),
        "file": np.tile(np.array(batch.names, dtype=object), copies),
    }


def vary(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pictures, each mirrored or not, and shifted a little: (pictures, rows, columns, ...).

    What is shifted in repeats the edge.
    """
    count, rows, columns = pixels.shape[:3]
    mirrored, numbers = rng.random((count, 1)) < 0.5, np.arange(count)[:, np.newaxis]

    def positions(length: int) -> np.ndarray:
        most = max(1, length // FARTHEST)
        shifts = rng.integers(-most, most + 1, (count, 1))
        found: np.ndarray = np.clip(np.arange(length) + shifts, 0, length - 1)
        return found

    of_rows, of_columns = positions(rows), positions(columns)
    of_columns = np.where(mirrored, of_columns[:, ::-1], of_columns)
    at = numbers[..., np.newaxis], of_rows[:, :, np.newaxis], of_columns[:, np.newaxis, :]
    varied: np.ndarray = pixels[at]
    return varied


def _close_gaps(path: Path, filled: list[tuple[int, int]]) -> None:
    """Move the last pictures of a store to the rows that broken ones have left, and shorten it."""
    group = zarr.open_group(path, mode="r+")
    names, label = ("pixels", "label", "file"), group["label"]
    total = sum(stop - start for start, stop in filled)
    is_filled = np.zeros(label.shape[0], bool)  # type: ignore[union-attr]
    for start, stop in filled:
        is_filled[start:stop] = True
    gaps = np.flatnonzero(~is_filled[:total])
    moved = total + np.flatnonzero(is_filled[total:])
    for first in range(0, len(gaps), MOST_ROWS):
        some = slice(first, first + MOST_ROWS)
        for name in names:
            array: Any = group[name]
            array.oindex[gaps[some]] = array.oindex[moved[some]]
    for name in names:
        array = group[name]
        array.resize((total, *array.shape[1:]))
