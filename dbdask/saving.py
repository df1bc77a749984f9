"""Saved results: a Zarr group of numbers and JSON; nothing in it is executed.

model.zarr                   sealed: how long the vector is
model.zarr/parameters        the flat vector
model.zarr/description       sealed: all the rest; the last key

A result that replaces another one is written beside it, as a group of the same form in `model.zarr`
whose name begins with a higher number; then the other one is deleted. Nothing is overwritten or
renamed: a reader takes what is complete and has the highest number, so there is one result or the
other at every moment.
"""

import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import zarr

from dbdask.arrays import Float32Array
from dbdask.daemon_threads import start_call
from dbdask.data.examples import Examples
from dbdask.errors import ResultError
from dbdask.metrics.history import History
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.models.network import Network, what_is_own
from dbdask.rpc.store_calls import call_store
from dbdask.status import Status
from dbdask.storage import sealed
from dbdask.storage.checkpoint import VECTORS, VectorReference, write_vectors
from dbdask.stored_parameters import read_parameters, read_part

T = TypeVar("T")

logger = logging.getLogger("dbdask")

KIND = {"dbdask_result": 2}
ROOT, PARAMETERS, DESCRIPTION = "zarr.json", "parameters", "description"
LATER = re.compile(r"(\d{8,})-\w+")  # the groups of results that have replaced another
CHUNK = 2**22  # floats
STEP = 4 * CHUNK
"""Floats of a stored vector that are held while it is saved; one that has no more is read first."""


@dataclass(frozen=True)
class SavedVector(VectorReference):
    """The parameters of a saved result."""

    argument: ClassVar[str] = "path"
    error: ClassVar[type[Exception]] = ResultError

    def read(self, start: int = 0, stop: int | None = None) -> Float32Array:
        """Read a slice, or the whole vector: float32 (stop - start,).

        Raises
        ------
        ResultError
            The saved result cannot be read.
        """
        with _reading(str(self.path)):
            return self._read(start, stop)

    def is_beside(self, other: "SavedVector") -> bool:
        """Whether another one is at the same path, however that is spelled."""
        return _place_of(str(self.path)) == _place_of(str(other.path))


def _place_of(path: str) -> str:
    """Return one name for all names of a folder; any other URL as it is."""
    local = sealed.local_path(path)
    return path if local is None else os.path.realpath(local)


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


def save(parts: Parts, path: Any, *, overwrite: bool) -> SavedVector:
    """Write the parts of a result. What it replaces is deleted when all of it is written.

    Returns where the parameters are now.

    Raises
    ------
    FileExistsError
        Something lies at `path` and `overwrite` is False; or it is no saved result.
    OSError
        `path` cannot be written, or its store hangs (then it is a `TimeoutError`).
    """
    path = _as_path(path)
    size, vector = as_layout(parts.model.layout).size, parts.parameters
    if size <= STEP:
        vector = read_parameters(vector, size)
    description = sealed.as_json(_describe(parts))
    saving = _Saving(path)
    if saving.ask("it was looked at", _is_free, path, overwrite):
        group = ""
        saving.write(group, vector, size, description)
    else:
        group = saving.replace(vector, size, description)
    return SavedVector(path, group)


class _Saving:
    """One result on its way to its path; each question to the store ends within `dbdask.store`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._asking = threading.Lock()  # held as long as the store has not answered

    def write(
        self,
        group: str,
        vector: Float32Array | VectorReference,
        size: int,
        description: dict[str, Any],
    ) -> None:
        """Write a result into a group; a stored vector of `size` floats is never held whole."""
        path, chunk = self.path, min(CHUNK, max(1, size))
        cut = {**KIND, **VECTORS}, [PARAMETERS], size, chunk
        self.ask("its vector was made", write_vectors, path, group, *cut)
        array = f"{group}/{PARAMETERS}".lstrip("/")
        doing = "the parameters were written"
        for start, stop in pairwise([*range(0, size, STEP), size]):
            values = (
                read_part(vector, start, stop)
                if isinstance(vector, VectorReference)
                else vector[start:stop]
            )
            piece = start, stop, values
            self.ask(doing, sealed.write_slice, path, array, *piece, nbytes=values.nbytes)
        name = f"{group}/{DESCRIPTION}".lstrip("/")
        self.ask("the description was written", sealed.write, path, name, KIND, description)

    def replace(
        self, vector: Float32Array | VectorReference, size: int, description: dict[str, Any]
    ) -> str:
        """Write a result beside another one, and then delete all that is not its.

        Returns the group that it is in.
        """
        before = set(self.ask("it was listed", sealed.children, self.path)) - {ROOT}
        number = 1 + max((_number(name) for name in before if LATER.fullmatch(name)), default=0)
        group = f"{number:08d}-{uuid.uuid4().hex[:12]}"
        try:
            self.write(group, vector, size, description)
        except BaseException:
            self._delete({group})
            raise
        self._delete(before)
        return group

    def _delete(self, names: set[str]) -> None:
        """Delete what no result needs: at once, or when the store that hangs has answered."""
        if self._asking.locked():
            start_call(self._ask, _delete, self.path, names)
            return
        try:
            self.ask("what no result needs was deleted", _delete, self.path, names)
        except TimeoutError as error:
            logger.warning("%s", error)

    def ask(self, doing: str, function: Callable[..., T], *arguments: Any, nbytes: int = 0) -> T:
        """Call a function of the store.

        Raises
        ------
        TimeoutError
            The store hangs.
        OSError
            The store cannot be written.
        """
        place = f"path={self.path!r}"
        answer: T = call_store(
            place, doing, self._ask, function, *arguments, error=TimeoutError, nbytes=nbytes
        )
        return answer

    def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        with self._asking:
            try:
                return function(*arguments)
            except FileExistsError:
                raise
            except OSError as error:
                raise OSError(
                    f"path={self.path!r} cannot be written: {error}; give a path or URL that this "
                    "process can write"
                ) from error


def _number(group: str) -> int:
    return int(group.split("-")[0])


def _delete(path: str, names: set[str]) -> None:
    """Delete what no result needs: what cannot be deleted costs space, until the next one comes."""
    for name in names:
        try:
            sealed.delete(path, name)
        except Exception as error:
            logger.warning("%s of path=%r could not be deleted: %r", name, path, error)


def _describe(parts: Parts) -> dict[str, Any]:
    describe = getattr(parts.model, "description", None)
    return {
        "model": describe() if callable(describe) else None,
        "layout": as_layout(parts.model.layout).table(),
        "examples": parts.examples.description(),
        "status": {"reason": parts.status.reason, "message": parts.status.message},
        "history": parts.history.to_json(),
    }


def _is_free(path: str, overwrite: bool) -> bool:
    """Whether nothing lies at the path; if something does, it must be a saved result."""
    if sealed.is_empty(path):
        return True
    if not overwrite:
        raise FileExistsError(f"path={path!r} exists already: choose another, or overwrite=True")
    if not _is_ours(path):
        raise FileExistsError(
            f"path={path!r} is no saved result, which is all that overwrite=True replaces: "
            "choose another path, or delete it yourself"
        )
    return False


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
        group, size, found = call_store(
            f"path={path!r}", "it was read", _read, path, error=ResultError
        )
        model = _model_of(path, found, model)
        examples = Examples.from_description(found["examples"])
        history = History.from_json(found["history"])
        status = Status(found["status"]["reason"], found["status"]["message"])
        wanted = as_layout(model.layout).size
        if size != wanted:
            raise ResultError(f"path={path!r} holds {size} parameters, the model has {wanted}")
    return Parts(model, examples, SavedVector(path, group), history, status)


Found = tuple[str, int, dict[str, Any]]
"""The group of a result, how long its vector is, and its description."""


def _read(path: str) -> Found:
    """Return the result of the highest number that is complete."""
    if sealed.is_empty(path):
        raise ResultError(f"path={path!r} does not exist: give what Result.save was given")
    later = sorted((name for name in sealed.children(path) if LATER.fullmatch(name)), key=_number)
    for group in reversed(later):
        try:
            return _read_group(path, group)
        except Exception as error:  # its writer died, or it is being written
            logger.warning("%s of path=%r is no whole result: %r", group, path, error)
    return _read_group(path, "")


def _read_group(path: str, group: str) -> Found:
    size = sealed.read(path, group, KIND)["size"]
    return group, size, sealed.read(path, f"{group}/{DESCRIPTION}".lstrip("/"), KIND)


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
