"""The three forms of `resume`, and whether a checkpoint is of this very run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dbdask.data.examples import Examples
from dbdask.errors import CheckpointError
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.run.ownership import Ownership, in_time
from dbdask.schedule.portions import Cut
from dbdask.storage import checkpoint as store
from dbdask.storage.checkpoint import Snapshot
from dbdask.storage.sealed import as_json

SAME = {
    "verb": "another algorithm wrote it",
    "model": "the model is another",
    "examples": "the examples are others",
    "layout": "the model has other parameters",
    "optimizer": "another optimizer wrote its state",
    "batch_size": "the minibatches would be others",
    "history_length": "the history of L-BFGS has another length",
    "l2": "the objective is another",
    "seed": "the order of the data would be another",
    "rows": "the number of examples is another",
    "cut": "the data has other chunks, so the portions would be others",
}


def settings_of(algorithm: str, model: Model, examples: Examples) -> dict[str, Any]:
    """Return what a checkpoint says of the model and the examples that it is of.

    The numbers of a standardisation are left out: they are measured anew by each script, and may
    differ in their last bits.
    """
    describe = getattr(model, "description", None)
    described = examples.description()
    scaled = {name: _scaled(described[name]) for name in ("input_scalings", "target_scalings")}
    del described["variables"]
    return {
        "verb": algorithm,
        "model": describe() if callable(describe) else None,
        "layout": as_layout(model.layout).table(),
        "examples": described | scaled,
        "rows": len(examples),
    }


def _scaled(scalings: list[Any] | None) -> bool | list[bool]:
    """Return whether variables are scaled; of each, if only some are."""
    found = [one is not None for one in scalings or ()]
    return found if any(found) and not all(found) else any(found)


def digest_of(cut: Cut) -> str:
    """Return what tells one cut into blocks from another; the length of portions is no part."""
    return cut.digest


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint that a run may write to, as long as it is open."""

    path: str | None = None
    last: Snapshot | None = None
    """The committed snapshot to go on from."""
    ownership: Ownership | None = None


@contextmanager
def open_checkpoint(
    path: str | None, resume: bool | str, settings: dict[str, Any]
) -> Iterator[OpenCheckpoint]:
    """Begin a checkpoint, or find the snapshot to go on from; it is this run's until the end.

    Raises
    ------
    CheckpointError
        The checkpoint exists (`resume=False`) or does not (`resume=True`), is of another run, or in
        use by one; or its store hangs.
    """
    if path is None:
        yield OpenCheckpoint()
        return
    path = absolute(os.fspath(path))
    in_time(path, "it was read", _find, path, resume, settings)  # what is wrong is said at once
    ownership = Ownership(path, settings)
    ownership.take()
    try:
        # Read anew: the owner of before may have written meanwhile.
        last = in_time(path, "it was read", _find, path, resume, settings)
        if last is None:
            in_time(path, "it was begun", _begin, path, settings)
        yield OpenCheckpoint(path, last, ownership)
    finally:
        ownership.release()


def check_can_begin(path: str | None, resume: bool | str) -> None:
    """Check that a checkpoint exists, or does not, as `resume` says.

    Raises
    ------
    CheckpointError
        As `open_checkpoint` does, but for what is in it.
    """
    if path is not None:
        path = absolute(os.fspath(path))
        in_time(path, "it was read", _latest, path, resume)


def _find(path: str, resume: bool | str, settings: dict[str, Any]) -> Snapshot | None:
    """Return the snapshot to go on from; None if the run is to begin."""
    there, last = _latest(path, resume)
    if last is not None:
        _check_same(path, there, settings)
    return last


def _latest(path: str, resume: bool | str) -> tuple[dict[str, Any], Snapshot | None]:
    """Return a checkpoint's settings and last snapshot, if `resume` allows that there is one."""
    is_there = store.exists(path)
    settings = store.attributes(path) if is_there else {}
    last = store.latest(path) if is_there else None
    if last is not None:
        if resume is False:
            raise CheckpointError(
                f"checkpoint={path!r} exists already: go on from it with resume=True "
                '(or resume="auto"), or delete it to start anew'
            )
        return settings, last
    if resume is True:
        why = "holds no snapshot yet" if is_there else "does not exist"
        raise CheckpointError(
            f'resume=True, but checkpoint={path!r} {why}: resume="auto" starts one'
        )
    return settings, None


def _begin(path: str, settings: dict[str, Any]) -> None:
    """Begin a checkpoint; what a run left that ended before its first snapshot goes."""
    store.clear(path)
    store.create(path, settings)


def _check_same(path: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, why in SAME.items():
        if name in settings and found.get(name) != as_json(settings)[name]:
            name, there, here = _difference(name, found.get(name), as_json(settings)[name])
            shown = "algorithm" if name == "verb" else name
            raise CheckpointError(
                f"checkpoint={path!r} cannot be resumed: {why} ({shown} is "
                f"{_brief(there)} there and {_brief(here)} here); "
                "use the same value, or another path"
            )


def _difference(name: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """Return the first entry in which two descriptions differ, else the two as they are."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in here:
            if there.get(key) != here[key]:
                return f"{name} {key!r}", there.get(key), here[key]
    return name, there, here


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def absolute(path: str) -> str:
    """Make a local path absolute; leave a URL as it is.

    Examples
    --------
    >>> absolute("s3://bucket/run.zarr")
    's3://bucket/run.zarr'
    """
    return path if "://" in path else os.path.abspath(path)
