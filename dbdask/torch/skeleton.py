"""A module apart from its tensors: the tensors by name, and the rest as a pickle."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cloudpickle
import numpy as np
import torch
from torch.nn.parameter import is_lazy

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.layout import Layout, Parameter

Role = Literal["trained", "frozen", "buffer"]

EXACT = 2**24
"""The largest magnitude up to which float32 holds every whole number."""


class Slot(NamedTuple):
    """The place of one tensor of a module, whose values live in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role
    owner: str
    """The submodule that has it."""
    attribute: str
    """Its name there."""


@dataclass(frozen=True)
class Skeleton:
    """A module without values: it travels small, and is built anew for each thread.

    Parameters
    ----------
    slots
        The tensors, in the order of the flat vector: trained, then frozen, then buffers.
    pickled
        The module, in which each tensor is the number of its slot, and its loss.
    is_training
        Whether the module was in training mode. Its submodules then keep their modes in training;
        else all of it is put into training mode.
    """

    slots: tuple[Slot, ...]
    pickled: bytes
    is_training: bool

    @property
    def layout(self) -> Layout:
        """The tensors as parameters of a model."""
        return Layout(
            tuple(
                Parameter(
                    slot.name,
                    slot.shape,
                    tuple(f"{slot.name}_{axis}" for axis in range(len(slot.shape))),
                    "trained" if slot.role == "trained" else "buffer",
                )
                for slot in self.slots
            )
        )

    def build(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.nn.Module, Any]:
        """Return a new module that has these tensors, and the loss that travels with it."""
        module, loss = _Reader(io.BytesIO(self.pickled), tensors).load()
        return module, loss


class _Writer(cloudpickle.Pickler):
    """Pickles a module, and leaves out the tensors that have a slot."""

    def __init__(self, file: io.BytesIO, places: dict[int, int]) -> None:
        super().__init__(file)
        self._places = places

    def persistent_id(self, thing: object) -> int | None:
        return self._places.get(id(thing)) if isinstance(thing, torch.Tensor) else None


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, place: int) -> torch.Tensor:
        return self._tensors[place]


def skeleton_of(module: torch.nn.Module, loss: object) -> Skeleton:
    """Return the skeleton of a module, with which its loss travels.

    Raises
    ------
    TypeError, ValueError
        A tensor cannot be kept in float32, or something cannot be pickled: names it.
    """
    found = _slots(module)
    for slot, tensor in found:
        _check(slot, tensor)
    if not any(slot.role == "trained" for slot, _ in found):
        raise ValueError(
            f"module {type(module).__name__} has no parameter to train: leave requires_grad=True "
            "on those that are to be trained"
        )
    places = {id(tensor): place for place, (_, tensor) in enumerate(found)}
    try:
        pickled = _pickle((module, loss), places)
    except Exception as error:
        raise TypeError(_why_not(module, loss, places)) from error
    return Skeleton(tuple(slot for slot, _ in found), pickled, module.training)


def values_of(module: torch.nn.Module) -> Float32Array:
    """Return the values of a module's tensors as a flat vector, float32 of (elements,).

    Raises
    ------
    ValueError
        A buffer holds whole numbers that float32 does not: names it.
    """
    return np.concatenate([_as_float32(slot, tensor).ravel() for slot, tensor in _slots(module)])


def _slots(module: torch.nn.Module) -> list[tuple[Slot, torch.Tensor]]:
    """Return each tensor that the flat vector holds, once, in its order."""
    found: dict[Role, list[tuple[Slot, torch.Tensor]]] = {"trained": [], "frozen": [], "buffer": []}
    seen: set[int] = set()
    for owner, part in module.named_modules():
        kept = {n: b for n, b in part._buffers.items() if n not in part._non_persistent_buffers_set}
        for attribute, tensor in (*part._parameters.items(), *kept.items()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            role: Role = "buffer"
            if attribute in part._parameters:
                role = "trained" if tensor.requires_grad else "frozen"
            name = f"{owner}.{attribute}" if owner else attribute
            shape = () if is_lazy(tensor) else tuple(tensor.shape)
            slot = Slot(name, shape, tensor.dtype, role, owner, attribute)
            found[role].append((slot, tensor))
    return [*found["trained"], *found["frozen"], *found["buffer"]]


def _check(slot: Slot, tensor: torch.Tensor) -> None:
    what, name = "buffer" if slot.role == "buffer" else "parameter", slot.name
    if is_lazy(tensor):
        raise ValueError(
            f"{what} {name!r} has no shape yet (a lazy module): call the module on a batch first"
        )
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_complex():
        raise TypeError(
            f"{what} {name!r} must be a dense tensor of real numbers with values, got "
            f"{tensor.dtype} of layout {tensor.layout} on {tensor.device}"
        )
    if slot.role != "buffer" and tensor.dtype != torch.float32:
        raise TypeError(
            f"parameter {name!r} is {tensor.dtype}: parameters are kept in float32; convert the "
            'module with module.float(), and give precision="bfloat16" for faster arithmetic'
        )
    if tensor.numel() == 0:
        raise ValueError(f"{what} {name!r} is empty, of shape {tuple(tensor.shape)}: remove it")


def _as_float32(slot: Slot, tensor: torch.Tensor) -> Float32Array:
    """Return the values of a tensor, float32 of its shape."""
    values = tensor.detach().cpu()
    is_whole = not values.is_floating_point() and values.dtype != torch.bool
    if is_whole and int(values.abs().max()) > EXACT:
        raise ValueError(
            f"buffer {slot.name!r} holds whole numbers beyond 2**24, which float32 does not hold: "
            "register it with persistent=False, and it travels with the module as it is"
        )
    as_numpy: Float32Array = values.to(torch.float32).numpy()
    return as_numpy


def _pickle(thing: object, places: dict[int, int]) -> bytes:
    file = io.BytesIO()
    _Writer(file, places).dump(thing)
    return file.getvalue()


def _failure(thing: object, places: dict[int, int]) -> Exception | None:
    """Return the error that pickling raises; None if there is none."""
    try:
        _pickle(thing, places)
    except Exception as error:
        return error
    return None


def _why_not(module: torch.nn.Module, loss: object, places: dict[int, int]) -> str:
    """Say which smallest part of a module cannot be pickled, and what to do."""
    failure = _failure(module, places)
    if failure is None:
        return (
            f"loss cannot be pickled, and travels to every worker so: {_failure(loss, places)}; "
            "give a function that holds no open file, lock or generator"
        )
    where = ""
    for name, part in module.named_modules():
        if own := _failure(part, places):
            where, failure, module = name, own, part
    attribute, cause = _guilty(module, places, failure)
    return (
        f"module {f'{where!r} ' if where else ''}({type(module).__name__}) cannot be pickled, and "
        f"travels to every worker so: {attribute}{cause}; keep no lock, open file, generator or "
        "compiled module in it: make such a thing in forward when it is first needed, or leave it "
        "out of the state with __getstate__"
    )


def _guilty(
    module: torch.nn.Module, places: dict[int, int], failure: Exception
) -> tuple[str, Exception]:
    """Return the attribute of a module that cannot be pickled, in words, and the error."""
    for name, value in vars(module).items():
        if name != "_modules" and (own := _failure(value, places)):
            return f"its attribute {name!r}: ", own
    return "", failure


def copied(values: Float32Array, slot: Slot, offset: int) -> torch.Tensor:
    """Return one tensor, in its own shape and dtype, with its values from float32 (n,)."""
    size = int(np.prod(slot.shape))
    flat = torch.tensor(values[offset : offset + size]).reshape(slot.shape)
    return flat.to(slot.dtype)


def with_values(skeleton: Skeleton, values: Float32Array) -> torch.nn.Module:
    """Return a new module with the values of a vector, float32 (n,), in eval mode.

    Raises
    ------
    ModelError
        The vector has another length than the module has elements.
    """
    layout = skeleton.layout
    if values.shape != (layout.size,):
        raise ModelError(f"parameters must have shape ({layout.size},), got {values.shape}")
    tensors = [
        _of_role(copied(values, slot, offset), slot)
        for slot, offset in zip(skeleton.slots, layout.offsets, strict=True)
    ]
    module, _ = skeleton.build(tensors)
    return module.eval()


def _of_role(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    if slot.role == "buffer":
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=slot.role == "trained")
