"""The three forms of `resume`, and whether a checkpoint is of this very run."""

import os
from typing import Any

from dbdask.errors import CheckpointError
from dbdask.numbers import checkpoint as store
from dbdask.numbers.checkpoint import Snapshot

SAME = {
    "verb": "another verb wrote it",
    "layout": "the model has other parameters",
    "optimizer": "another optimizer wrote its state",
    "batch_size": "the minibatches would be others",
    "history_length": "the history of L-BFGS has another length",
    "l2": "the objective is another",
    "seed": "the order of the data would be another",
    "rows": "the number of examples is another",
}


def open_checkpoint(
    path: str | None, resume: bool | str, settings: dict[str, Any]
) -> tuple[str | None, Snapshot | None]:
    """Begin a checkpoint, or find the snapshot to go on from.

    Raises
    ------
    CheckpointError
        The checkpoint exists (`resume=False`) or does not (`resume=True`), or is of another run.
    """
    if path is None:
        return None, None
    path = absolute(os.fspath(path))
    is_there = store.exists(path)
    settings_there = store.attributes(path) if is_there else {}
    last = store.latest(path) if is_there else None
    if last is not None:
        if resume is False:
            raise CheckpointError(
                f"checkpoint={path!r} exists already: go on from it with resume=True "
                '(or resume="auto"), or delete it to start anew'
            )
        _check_same(path, settings_there, settings)
        return path, last
    if resume is True:
        why = "holds no snapshot yet" if is_there else "does not exist"
        raise CheckpointError(
            f'resume=True, but checkpoint={path!r} {why}: resume="auto" starts one'
        )
    if is_there:
        store.clear(path)  # of a run that ended before its first snapshot
    store.create(path, settings)
    return path, None


def _check_same(path: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, why in SAME.items():
        if name in settings and found.get(name) != settings[name]:
            raise CheckpointError(
                f"checkpoint={path!r} cannot be resumed: {why} ({name} is "
                f"{_brief(found.get(name))} there and {_brief(settings[name])} here); "
                "use the same value, or another path"
            )


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
