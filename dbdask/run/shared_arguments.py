"""The arguments that `downpour` and `sandblaster` share: checks and conversions."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from dbdask.daemon_threads import DeadlinePassed, call_within
from dbdask.data.checks import drop_warning
from dbdask.data.examples import Examples
from dbdask.data.fills import fill_warnings
from dbdask.errors import CheckpointError, DataError, ResultError
from dbdask.metrics.scores import NOTHING
from dbdask.models.layout import Layout, as_layout, check_dims
from dbdask.models.model import Model
from dbdask.result import Result
from dbdask.rpc.arrivals import await_named
from dbdask.rpc.deadlines import deadline
from dbdask.run import arguments
from dbdask.run.fitting import check_contract, layout_size
from dbdask.run.outcome import Outcome
from dbdask.run.stored_start import check_parameter, stored_start
from dbdask.schedule.portions import Cut, suggest_validation_rows
from dbdask.users_code import UsersCode
from dbdask.worker.initial import FromStored, check_finite

Parameters = Result | xr.Dataset | np.ndarray
"""Parameters to start from: a result, its `.parameters`, or a flat float32 vector."""


def check_shared(given: Mapping[str, Any]) -> None:
    """Check the arguments that all algorithms share.

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        An argument has a wrong value, or needs another argument that is not given.
    """
    arguments.at_least("seed", given["seed"], 0)
    for name in ("replicas", "shards"):
        if given[name] is not None:
            arguments.at_least(name, given[name], 1)
    _check_partitions(given["partitions"], given["shards"])
    arguments.at_least("shard_copies", given["shard_copies"], 1)
    arguments.one_of("keep", given["keep"], ("last", "best"))
    arguments.one_of("resume", given["resume"], (False, True, "auto"))
    arguments.duration("snapshot_every", given["snapshot_every"])
    arguments.one_of("progress", given["progress"], (None, True, False))
    for name in ("examples", "validation"):
        if not isinstance(given[name], Examples) and (name, given[name]) != ("validation", None):
            raise TypeError(f"{name} must be dbdask.Examples, got {type(given[name]).__name__}")
    check_contract(given["model"])
    check_dims(as_layout(given["model"].layout))
    _check_path(given["checkpoint"])
    if not isinstance(given["callbacks"], Sequence):
        raise TypeError(f"callbacks must be a list of callables, got {given['callbacks']!r}")
    for callback in given["callbacks"]:
        if not callable(callback):
            raise TypeError(f"callbacks must be callables, got {callback!r}")
    if given["keep"] == "best" and given["validation"] is None:
        raise ValueError('keep="best" needs validation=, the examples to choose by')
    if given["resume"] and given["checkpoint"] is None:
        raise ValueError(f"resume={given['resume']!r} needs checkpoint=, the path to go on from")


def _check_partitions(partitions: Any, shards: int | None) -> None:
    arguments.at_least("partitions", partitions, 1)
    if shards is not None and shards < partitions:
        raise ValueError(
            f"shards must be at least partitions={partitions}, because every shard is inside one "
            f"part of the model, got {shards}"
        )


def _check_path(checkpoint: object) -> None:
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a path or a URL, got {checkpoint!r}")
    if checkpoint is not None and not os.fspath(checkpoint):
        raise ValueError("checkpoint must be a path or a URL, got ''")


def validation_interval(
    value: int | str | None, validation: Examples | None
) -> tuple[int | None, float | None]:
    """Return the minibatches, or seconds, between two validations; both None mean each epoch.

    Raises
    ------
    ValueError
        It is neither a number of at least 1 nor a duration, or there are no validation examples.
    """
    if value is None:
        return None, None
    if validation is None:
        raise ValueError(f"validate_every={value!r} needs validation=, the examples to score")
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, np.timedelta64)
    if whole:
        return arguments.at_least("validate_every", value, 1), None
    return None, arguments.duration("validate_every", value)


def validation_cut(
    validation: Examples | None, parameter_count: int, batch_size: int
) -> Cut | None:
    """Return the cut of the validation examples, or None if there are none."""
    if validation is None:
        return None
    rows = suggest_validation_rows(
        len(validation), validation.row_bytes, parameter_count, batch_size
    )
    return validation.cut(rows, batch_size)


def check_what_was_left_out(outcome: Outcome) -> None:
    """Warn if many examples, a whole class, or many chunks were missing.

    Raises
    ------
    DataError
        Nothing was trained on.
    """
    if not outcome.history.records and outcome.status.reason == "epochs":
        raise DataError(NOTHING)
    found = outcome.history.left_out
    message = drop_warning(found.rows_read, found.count, found.first_place, found.lost_classes)
    for words in ([message] if message else []) + fill_warnings(found.fills):
        warnings.warn(words, UserWarning, stacklevel=3)


def deviation_of(examples: Examples) -> np.ndarray | float:
    """Return one unit of each scaled target, in the target's own units: float64 (targets,).

    It is 1.0 if targets are not scaled.
    """
    scaling = examples.target_scaling
    return 1.0 if scaling is None else scaling[1].ravel()


def worker_names(argument: str, given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return the workers of `workers=` or `shard_workers=`, as names.

    Raises
    ------
    TypeError
        They are neither a name nor a list of names.
    ValueError
        The list is empty.
    """
    if given is None:
        return None
    names = (given,) if isinstance(given, (str, int)) else given
    if not isinstance(names, Iterable) or not all(isinstance(n, (str, int)) for n in names):
        raise TypeError(f"{argument} must be a worker's name or address, or a list, got {given!r}")
    found = tuple(str(name) for name in names)
    if not found:
        raise ValueError(f"{argument} must name at least one worker, got none")
    return found


def check_named(argument: str, names: Sequence[str] | None, client: Client) -> None:
    """Check that a running worker has one of the names; wait for one that may be about to come.

    Raises
    ------
    WorkerError
        Says which workers there are.
    """
    if names is not None:
        client.sync(await_named, client, argument, names)


def starting_point(
    parameters: Parameters | None, model: Model, layout: Layout
) -> np.ndarray | FromStored | None:
    """Return the vector that training starts from, float32 (parameters,), or where it is stored.

    None: the shards ask the model for their initial numbers.

    Raises
    ------
    ValueError, TypeError
        A parameter, which the error names, does not fit the model or is not finite.
    CheckpointError
        The store that they are read from hangs.
    """
    if parameters is None and hasattr(model, "starting_parameters"):
        with UsersCode("model.starting_parameters"):
            parameters = model.starting_parameters()
    return stored_start(parameters, layout) or flat_parameters(parameters, layout)


def flat_parameters(parameters: Parameters | None, layout: Layout) -> np.ndarray | None:
    """Return a vector, float32 (parameters,), from a Result, its Dataset, or a vector.

    Raises
    ------
    ValueError, TypeError
        A parameter, which the error names, does not fit the model or is not finite.
    CheckpointError
        The store that they are read from hangs.
    """
    if parameters is None or isinstance(parameters, np.ndarray):
        return _flat_parameters(parameters, layout)
    seconds = round(deadline("store", 4 * layout.size), 1)
    try:
        if isinstance(parameters, Result):
            parameters = parameters.parameters  # read under a deadline that names the path
        return call_within(seconds, _flat_parameters, parameters, layout, what="parameters=")
    except ResultError as error:
        if not isinstance(error.__cause__, DeadlinePassed):
            raise
        raise CheckpointError(f"parameters= were not read: {error}") from error
    except DeadlinePassed as error:
        raise CheckpointError(
            f"parameters= were not read in {seconds:g} s (dbdask.store): the store that holds them "
            "hangs, or needs a longer dbdask.store"
        ) from error


def _flat_parameters(parameters: Parameters | None, layout: Layout) -> np.ndarray | None:
    if parameters is None:
        return None
    parameters = getattr(parameters, "parameters", parameters)
    if isinstance(parameters, np.ndarray):
        layout_size(parameters, layout)
        return _finite(_numbers("parameters", parameters), layout)
    if not isinstance(parameters, xr.Dataset):
        raise TypeError(
            "parameters must be a Result (dbdask.load(path) reads one), its .parameters, or a flat "
            f"vector, got {parameters!r}"
        )
    vector = np.empty(layout.size, np.float32)
    for name, view in layout.views(vector).items():
        shape = parameters[name].shape if name in parameters else None
        check_parameter(name, shape, view.shape)
        view[...] = _numbers(f"parameters[{name!r}]", parameters[name].values)
    return _finite(vector, layout)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
    return np.ascontiguousarray(values, np.float32)


def _finite(vector: np.ndarray, layout: Layout) -> np.ndarray:
    for name, view in layout.views(vector).items():
        check_finite(name, view)
    return vector
