"""What both verbs settle before the first task: shared arguments, checked and made whole."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbdask.data.checks import drop_warning
from dbdask.data.examples import Examples
from dbdask.numbers.history import History
from dbdask.numbers.portions import Cut
from dbdask.verbs import arguments
from dbdask.verbs.fitting import layout_size


def check_shared(given: dict[str, Any]) -> None:
    """Check the arguments that the verbs share."""
    arguments.at_least("seed", given["seed"], 0)
    for name in ("replicas", "shards"):
        if given[name] is not None:
            arguments.at_least(name, given[name], 1)
    arguments.not_yet("partitions", given["partitions"], 1)
    arguments.at_least("shard_copies", given["shard_copies"], 1)
    arguments.one_of("keep", given["keep"], ("last", "best"))
    arguments.one_of("resume", given["resume"], (False, True, "auto"))
    arguments.duration("snapshot_every", given["snapshot_every"])
    if not isinstance(given["examples"], Examples):
        raise TypeError(f"examples must be dbdask.Examples, got {type(given['examples']).__name__}")
    for callback in given["callbacks"]:
        if not callable(callback):
            raise TypeError(f"callbacks must be callables, got {callback!r}")
    if given["keep"] == "best" and given["validation"] is None:
        raise ValueError('keep="best" needs validation=, the examples to choose by')
    if given["resume"] and given["checkpoint"] is None:
        raise ValueError(f"resume={given['resume']!r} needs checkpoint=, the path to go on from")


def validation_interval(
    value: int | str | None, validation: Examples | None
) -> tuple[int | None, float | None]:
    """Minibatches, or seconds, between two validations; neither means each epoch."""
    if value is None:
        return None, None
    if validation is None:
        raise ValueError(f"validate_every={value!r} needs validation=, the examples to score")
    if isinstance(value, int):
        return arguments.at_least("validate_every", value, 1), None
    return None, arguments.duration("validate_every", value)


def validation_cut(validation: Examples | None, batch_size: int, portion_rows: int) -> Cut | None:
    """The cut of the validation examples, where there are some."""
    return validation.cut(portion_rows, batch_size) if validation is not None else None


def warn_of_dropped(history: History) -> None:
    """Say so where many examples were left out as missing."""
    if not history.records:
        return
    last = history.records[-1]
    message = drop_warning(last.examples + last.dropped, last.dropped, "")
    if message:
        warnings.warn(f"{message}; examples.check() says where", UserWarning, stacklevel=3)


def deviation_of(examples: Examples) -> np.ndarray | float:
    """What one unit of each scaled target is in the target's own units."""
    scaling = examples.target_scaling
    return 1.0 if scaling is None else scaling[1].ravel()


def worker_names(workers: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The workers of `workers=` or `shard_workers=`, as names."""
    if workers is None:
        return None
    names = (workers,) if isinstance(workers, (str, int)) else tuple(workers)
    if not names:
        raise ValueError("workers must name at least one worker, got none")
    return tuple(str(name) for name in names)


def flat_parameters(parameters: Any, layout: Any) -> np.ndarray | None:
    """Return a flat float32 vector from a Result, its Dataset, or a vector.

    Raises
    ------
    ValueError
        They do not fit the model: the parameter and both shapes are named.
    """
    if parameters is None:
        return None
    parameters = getattr(parameters, "parameters", parameters)
    if isinstance(parameters, np.ndarray):
        layout_size(parameters, layout)
        return np.ascontiguousarray(parameters, np.float32)
    vector = np.empty(layout.size, np.float32)
    for name, view in layout.views(vector).items():
        if name not in parameters:
            raise ValueError(f"parameters has no {name!r}, which the model needs")
        if parameters[name].shape != view.shape:
            raise ValueError(
                f"parameters[{name!r}] has shape {parameters[name].shape}, "
                f"the model needs {view.shape}"
            )
        view[...] = np.asarray(parameters[name].values, np.float32)
    return vector
