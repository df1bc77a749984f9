"""Pickling: how examples that a user pickles find their data again.

A pickle of examples of a store carries the store's place. Data in memory, or computed by Dask,
are carried up to `CARRIED_BYTES`; data of any size are found again in the process that pickled
them. Otherwise the copy knows its metadata, and reading a value raises an error that says why.

Tasks carry less: see `Examples.worker_side`.
"""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakValueDictionary

import cloudpickle

from dbdask.data.recipe import Recipe
from dbdask.data.routes import Absent, Lacking
from dbdask.data.sources import Source
from dbdask.data.variables import Variable

CARRIED_BYTES = 4 * 2**20
"""The most bytes of a Dataset in memory, or of its Dask graph, that a pickle carries."""


class Opened(Protocol):
    """Examples, as this module uses them: their source, and their recipe."""

    @property
    def source(self) -> Source | None: ...

    @property
    def recipe(self) -> Recipe: ...


_examples_by_token: WeakValueDictionary[str, Opened] = WeakValueDictionary()


@dataclass(frozen=True)
class Parcel:
    """The content of a pickle of examples.

    Parameters
    ----------
    token
        Finds the examples themselves, as long as they live in the same process.
    whole
        Source and recipe, pickled, and the buffers of their arrays. None: see reason.
    recipe
        The recipe without values; None if the whole is carried.
    reason
        Why the whole is not carried.
    """

    token: str
    whole: tuple[bytes, list[bytearray]] | None
    recipe: Recipe | None
    reason: str = ""


def pack(examples: Opened) -> Parcel:
    """Return the parcel of examples with a source, and remember the examples by its token."""
    token = uuid.uuid4().hex
    _examples_by_token[token] = examples
    if _memory_bytes(examples) > CARRIED_BYTES:
        return _without_values(examples, token, _too_large(_memory_bytes(examples)))
    buffers: list[pickle.PickleBuffer] = []
    try:
        whole = cloudpickle.dumps(
            (examples.source, examples.recipe), protocol=5, buffer_callback=buffers.append
        )
    except Exception as error:
        reason = f"its data cannot be pickled ({type(error).__name__}: {error})"
        return _without_values(examples, token, reason)
    size = len(whole) + sum(buffer.raw().nbytes for buffer in buffers)
    if size > CARRIED_BYTES:
        return _without_values(examples, token, _too_large(size))
    return Parcel(token, (whole, [bytearray(buffer) for buffer in buffers]), None)


def unpack(parcel: Parcel) -> tuple[Source | None, Recipe]:
    """Return the source and the recipe of the examples that were packed.

    If the examples still exist in this process, these are theirs; else they are unpickled. A parcel
    without data gives None as the source, and a recipe without values.
    """
    examples = _examples_by_token.get(parcel.token)
    if examples is not None:
        return examples.source, examples.recipe
    if parcel.whole is not None:
        pickled, buffers = parcel.whole
        source, recipe = pickle.loads(pickled, buffers=buffers)
        return source, recipe
    assert parcel.recipe is not None
    return None, parcel.recipe


def _memory_bytes(examples: Opened) -> int:
    """Return the bytes of the arrays in memory that a recipe reads."""
    return sum(
        variable.nbytes
        for variable in examples.recipe.variables
        if variable.route == "memory" and variable.needs_blocks
    )


def _too_large(size: int) -> str:
    return f"it takes {size / 2**20:.1f} MiB, and a pickle carries {CARRIED_BYTES >> 20} MiB"


def _without_values(examples: Opened, token: str, reason: str) -> Parcel:
    def marked(variable: Variable) -> Variable:
        if not isinstance(variable.origin, Absent):
            return variable
        return replace(variable, origin=Lacking(variable.route, variable.name, reason))

    return Parcel(token, None, examples.recipe.worker_side().mapped(marked), reason)
