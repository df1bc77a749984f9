"""One dataset from one seed: drawn, stored, changed, described, and compared."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr

from .arguments import Asked, draw_asked
from .comparing import Wrong, compare
from .giving import Giver, draw_giver
from .kinds import choose
from .labels import declared_labels
from .observing import Observed, observe
from .operation import Operation
from .operations import draw_operations, quietly
from .plan import draw_plan
from .predictions import check_prediction
from .shown import World, of_dataset, of_store
from .writing import RAW

STORAGES = (*RAW, "xarray v2", "xarray v3", "netCDF 3", "netCDF 4", "memory", "blocks")
WEIGHTS = (4, 4, 2, 2, 3, 3, 1, 1, 4, 3)


@dataclass
class Trial:
    """What a seed draws, and what came of it."""

    seed: int
    giver: Giver | None = None
    operations: list[Operation] = field(default_factory=list)
    asked: Asked | None = None
    verdict: str = "nothing to ask"
    error: str = ""
    wrong: str = ""
    predicted: str = ""
    written: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def describe(self) -> str:
        """Return everything that was drawn, in words."""
        lines = [f"seed {self.seed}: {self.verdict} {self.error}"]
        if self.giver is not None:
            lines.append(self.giver.describe())
            for column in self.giver.plan.columns:
                lines.append(
                    f"  {column.name} {column.dims} {column.values.dtype} {column.attrs} "
                    f"fill {column.fill!r} chunks {column.chunks} without chunks {column.holes}"
                )
            lines += [f"  encoding of {n}: {e}" for n, e in self.giver.encodings.items()]
            lines += [f"  {dim}: {list(v)[:6]}" for dim, v in self.giver.plan.coords.items()]
        lines += [f"  {operation.text}" for operation in self.operations]
        if self.asked is not None:
            lines.append(f"  {self.asked}")
        return "\n".join(lines)

    def data(self) -> Any:
        """Return the data as they are given, opened anew."""
        assert self.giver is not None
        found = self.giver.open()
        for operation in self.operations:
            found = quietly(operation.step, found)
        return found


@contextmanager
def drawn(seed: int) -> Iterator[tuple[Trial, list[World]]]:
    """Draw a trial; its files are there until the end. No world: there is nothing to ask."""
    rng = np.random.default_rng(seed)
    storage = choose(rng, STORAGES, WEIGHTS)
    with (
        tempfile.TemporaryDirectory(prefix="dbdask-") as folder,
        dask.config.set(scheduler="synchronous"),
    ):
        plan = draw_plan(rng, storage in RAW, storage in ("memory", "blocks"))
        trial = Trial(seed, draw_giver(rng, plan, storage, Path(folder)))
        worlds = _draw_worlds(rng, trial)
        if worlds:
            trial.asked = draw_asked(rng, worlds[0], trial.giver.by_path)
            _fit_outputs(rng, trial.asked, worlds[0])
        yield trial, worlds if trial.asked is not None else []


def _draw_worlds(rng: np.random.Generator, trial: Trial) -> list[World]:
    giver = trial.giver
    assert giver is not None
    if giver.by_path:
        return list(of_store(zarr.open_group(giver.zarr_path, mode="r")))
    world = _shown(rng, trial)
    if world is None and giver.storage in RAW:
        giver.way = "store"
        return list(of_store(zarr.open_group(giver.zarr_path, mode="r")))
    if world is None:
        giver.storage = giver.way = "memory"
        world = _shown(rng, trial)
    return [] if world is None else [world]


def _shown(rng: np.random.Generator, trial: Trial) -> World | None:
    """Draw operations and return what the Dataset shows; None where xarray cannot open it."""
    assert trial.giver is not None
    try:
        # Drawn for values in memory, which cost less to look at after each operation; the whole
        # chain is done on what is given below.
        trial.operations, _ = draw_operations(rng, trial.giver.dataset().load())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shown = of_dataset(trial.data())
    except Exception:  # of every kind: what xarray cannot open or read is no case
        trial.operations = []
        return None
    trial.warned = {str(warning.message) for warning in caught}
    return shown


def _fit_outputs(rng: np.random.Generator, asked: Asked | None, world: World) -> None:
    """Let the outputs be as many as the declared classes, mostly."""
    if asked is None or asked.loss in (None, "squared") or asked.classes is not None:
        return
    shown = world.variables[asked.targets[0]]
    flags, _ = declared_labels(shown, shown.attrs)
    if flags and rng.random() < 0.9:
        asked.outputs = len(flags)


def _predict(trial: Trial, observed: Observed, worlds: list[World]) -> tuple[str, list[str]]:
    """Check a prediction by the readings that training does not tell apart: one is right.

    A cut may leave out the rows in which they differ.
    """
    assert trial.giver is not None and trial.asked is not None
    wrong = []
    for number, world in enumerate(worlds):
        with suppress(Wrong):
            verdict, table = compare(observed, [world], trial.asked, trial.warned)
            if verdict != "equal":
                continue
            folder = Path(trial.giver.folder) / f"predictions-{number}"
            folder.mkdir()
            try:
                return check_prediction(trial.data(), observed, table, folder)
            except Wrong as error:
                wrong.append(error)
    raise wrong[0]


def run(seed: int, predict: bool = True) -> Trial:
    """Draw a dataset and compare; what is wrong with it is kept in words.

    Every dataset that is read as the oracle says is predicted on. Without a loss there is no model;
    what is refused has no examples to train on; and where two readings are right ("not compared"),
    the oracle does not say what the model sees.
    """
    with drawn(seed) as (trial, worlds):
        if not worlds:
            return trial
        assert trial.asked is not None
        observed = observe(trial.data(), trial.asked)
        if observed.error is not None:
            trial.error = f"{type(observed.error).__name__} in {observed.stage}"
        try:
            trial.verdict, table = compare(observed, worlds, trial.asked, trial.warned)
            trial.reasons = table.required or table.allowed
            if predict and trial.verdict == "equal" and trial.asked.loss:
                trial.predicted, trial.written = _predict(trial, observed, worlds)
        except Wrong as wrong:
            trial.verdict, trial.wrong = "wrong", str(wrong)
        return trial
