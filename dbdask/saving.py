"""Saved results: a Zarr group of numbers and JSON; nothing in it is executed."""

import os
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import Crc32cCodec

from dbdask.data.examples import Examples
from dbdask.numbers.checkpoint import VectorReference, exists
from dbdask.numbers.history import History
from dbdask.numbers.layout import as_layout
from dbdask.numbers.network import Network
from dbdask.status import Status

if TYPE_CHECKING:
    from dbdask.result import Result

FORMAT = 1
CHUNK = 2**22  # floats


def save(result: "Result", path: Any, *, overwrite: bool) -> None:
    """Write a result.

    Raises
    ------
    FileExistsError
        Something lies at `path` and `overwrite` is False.
    """
    path = os.fspath(path)
    if exists(path) and not overwrite:
        raise FileExistsError(f"path={path!r} exists already: choose another, or overwrite=True")
    layout = as_layout(result.model.layout)
    describe = getattr(result.model, "description", None)
    group = zarr.open_group(path, mode="w")
    vector = result.vector()
    array = group.create_array(
        "parameters",
        shape=vector.shape,
        chunks=(min(CHUNK, max(1, vector.size)),),
        dtype="float32",
        compressors=[Crc32cCodec()],
    )
    array[:] = vector
    group.attrs.update(
        {
            "dbdask_result": FORMAT,
            "model": describe() if callable(describe) else None,
            "layout": layout.table(),
            "examples": result.examples.description(),
            "status": {"reason": result.status.reason, "message": result.status.message},
            "history": result._history.to_json(),
        }
    )


def load(path: Any, *, model: Any = None) -> "Result":
    """Read a result.

    Raises
    ------
    ValueError
        `path` holds no saved result, or a damaged one, or one of another model.
    """
    from dbdask.result import Result

    path = os.path.abspath(path) if "://" not in os.fspath(path) else os.fspath(path)
    try:
        found: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
    except Exception as error:
        raise ValueError(f"path={path!r} is not a Zarr group that can be read: {error}") from error
    if found.get("dbdask_result") != FORMAT:
        raise ValueError(f"path={path!r} is not a result saved by dbdask (format {FORMAT})")
    try:
        model = _model_of(found, model)
        reference = VectorReference(path, "", "parameters")
        examples = Examples.from_description(found["examples"])
        history = History.from_json(found["history"])
        status = Status(found["status"]["reason"], found["status"]["message"])
        shape = reference.open().shape
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"path={path!r} is damaged: {error!r}") from error
    if shape != (as_layout(model.layout).size,):
        raise ValueError(
            f"path={path!r} holds {shape[0]} parameters, the model has "
            f"{as_layout(model.layout).size}"
        )
    return Result(model, examples, reference, history, status)


def _model_of(found: dict[str, Any], model: Any) -> Any:
    if model is None and found["model"] is None:
        raise ValueError("the result was trained with a model of yours: give it as model=")
    if model is None:
        return Network.from_description(found["model"])
    if as_layout(model.layout).table() != found["layout"]:
        raise ValueError("model has another layout than the saved result")
    return model
