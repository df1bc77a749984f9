"""Saved results: a Zarr group of numbers and JSON; nothing in it is executed.

model.zarr                   sealed: how long the vector is
model.zarr/parameters        the flat vector
model.zarr/description       sealed: all the rest; the last key
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zarr

from dbdask.arrays import Float32Array
from dbdask.data.examples import Examples
from dbdask.errors import ResultError
from dbdask.metrics.history import History
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.models.network import Network, what_is_own
from dbdask.status import Status
from dbdask.storage import sealed
from dbdask.storage.checkpoint import VECTORS, VectorReference, write_vectors

KIND = {"dbdask_result": 2}
CHUNK = 2**22  # floats


@dataclass(frozen=True)
class SavedVector(VectorReference):
    """The parameters of a saved result."""

    def read(self, start: int = 0, stop: int | None = None) -> Float32Array:
        """Read a slice, or the whole vector, float32."""
        with _reading(str(self.path)):
            return self._read(start, stop)


@dataclass(frozen=True)
class Parts:
    """The parts of a result, as a saved result keeps them.

    Parameters
    ----------
    model
        The model.
    examples
        What it was trained on; of loaded parts, only the metadata.
    parameters
        The flat float32 vector; of loaded parts, where it can be read.
    history
        The records of the run.
    status
        Why the run stopped.
    """

    model: Model
    examples: Examples
    parameters: Float32Array | VectorReference
    history: History
    status: Status


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except ResultError:
        raise
    except Exception as error:
        raise ResultError(
            f"path={path!r} holds no saved result that can be read: {error!r}; "
            "restore it from a copy, or save the result again"
        ) from error


def save(parts: Parts, path: Any, *, overwrite: bool) -> None:
    """Write the parts of a result.

    Raises
    ------
    FileExistsError
        Something lies at `path` and `overwrite` is False; or it is no saved result.
    """
    path = _as_path(path)
    given = parts.parameters
    vector = given.read() if isinstance(given, VectorReference) else given
    description = sealed.as_json(_describe(parts))
    _make_room(path, overwrite)
    chunk = min(CHUNK, max(1, vector.size))
    try:
        write_vectors(path, "", {**KIND, **VECTORS}, ["parameters"], vector.size, chunk)
        sealed.write_slice(path, "parameters", 0, vector.size, vector)
        sealed.write(path, "description", KIND, description)
    except OSError as error:
        raise OSError(
            f"path={path!r} cannot be written: {error}; give a path or URL that this process can "
            "write"
        ) from error


def _describe(parts: Parts) -> dict[str, Any]:
    describe = getattr(parts.model, "description", None)
    return {
        "model": describe() if callable(describe) else None,
        "layout": as_layout(parts.model.layout).table(),
        "examples": parts.examples.description(),
        "status": {"reason": parts.status.reason, "message": parts.status.message},
        "history": parts.history.to_json(),
    }


def _make_room(path: str, overwrite: bool) -> None:
    """Leave nothing at the path, but delete no more than a saved result."""
    if sealed.is_empty(path):
        return
    if not overwrite:
        raise FileExistsError(f"path={path!r} exists already: choose another, or overwrite=True")
    if not _is_ours(path):
        raise FileExistsError(
            f"path={path!r} is no saved result, which is all that overwrite=True replaces: "
            "choose another path, or delete it yourself"
        )
    sealed.clear(path)


def _is_ours(path: str) -> bool:
    """Whether the group says that it is a saved result, be it a damaged one."""
    try:
        group = zarr.open_group(sealed.open_store(path), mode="r", use_consolidated=False)
    except Exception:
        return False
    return "dbdask_result" in group.attrs


def load(path: Any, *, model: Model | None = None) -> Parts:
    """Read the parts of a saved result.

    Raises
    ------
    ResultError
        `path` holds no saved result, or a damaged one, or one of another model.
    """
    path = _as_path(path)
    if model is not None and not hasattr(model, "layout"):
        raise TypeError(f"model must keep the dbdask.Model contract, got {model!r}")
    with _reading(path):
        if sealed.is_empty(path):
            raise ResultError(f"path={path!r} does not exist: give what Result.save was given")
        size = sealed.read(path, "", KIND)["size"]
        found = sealed.read(path, "description", KIND)
        model = _model_of(path, found, model)
        examples = Examples.from_description(found["examples"])
        history = History.from_json(found["history"])
        status = Status(found["status"]["reason"], found["status"]["message"])
        wanted = as_layout(model.layout).size
        if size != wanted:
            raise ResultError(f"path={path!r} holds {size} parameters, the model has {wanted}")
    return Parts(model, examples, SavedVector(path, ""), history, status)


def _as_path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path or a URL, got {path!r}")
    text = os.fspath(path)
    if not text:
        raise ValueError("path must be a path or a URL, got ''")
    return text if "://" in text else os.path.abspath(text)


def _model_of(path: str, found: dict[str, Any], model: Model | None) -> Model:
    if model is None and (missing := what_is_own(found["model"])):
        raise ResultError(
            f"path={path!r} was saved with {missing}, which a file of data cannot hold: give the "
            "model as model="
        )
    if model is None:
        return Network.from_description(found["model"])
    if as_layout(model.layout).table() != found["layout"]:
        raise ResultError(f"model has another layout than the result saved at path={path!r}")
    return model
