"""Pickling: how examples that a user pickles find their data again.

Examples of a store carry its place. What is in memory, or computed by Dask, is carried up to
`CARRIED_BYTES`; in the process that pickled it, it is found again whatever its size. Where neither
holds, the copy knows its metadata, and says what it lacks when a value is asked for.

What travels in a task is another matter: see `Examples.worker_side`.
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
"""Pickled bytes of a Dataset in memory, or of its Dask graph, that a pickle carries at most."""


class Opened(Protocol):
    """Examples, as this module sees them: where their data are, and which parts of it they are."""

    @property
    def source(self) -> Source | None: ...

    @property
    def recipe(self) -> Recipe: ...


_living: WeakValueDictionary[str, Opened] = WeakValueDictionary()


@dataclass(frozen=True)
class Parcel:
    """What a pickle of examples holds.

    Parameters
    ----------
    token
        Finds the examples themselves, as long as they live in the same process.
    whole
        Source and recipe, pickled, with the buffers of their arrays; None where too large.
    recipe
        The recipe without values; None where the whole is carried.
    reason
        Why the whole is not carried.
    """

    token: str
    whole: tuple[bytes, list[bytearray]] | None
    recipe: Recipe | None
    reason: str = ""


def pack(examples: Opened) -> Parcel:
    """Return what a pickle of examples with a source holds."""
    token = uuid.uuid4().hex
    _living[token] = examples
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
    """Return source and recipe of the examples that were packed."""
    living = _living.get(parcel.token)
    if living is not None:
        return living.source, living.recipe
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
