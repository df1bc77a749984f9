"""One thread's copy of a module, whose tensors are those of a flat vector during a call."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.torch.losses import as_tensor
from dbdask.torch.randomness import SeededForward
from dbdask.torch.skeleton import Skeleton, Slot


class BoundModule:
    """A module of one thread, on one device.

    On the CPU its parameters and their gradients are views of the vectors that a call is given,
    and nothing is copied. On another device they are views of two vectors there, and a call copies
    one vector each way. Buffers are small and may be written to, so they are always copies.

    Parameters
    ----------
    skeleton
        The module.
    device
        Where it computes.
    """

    def __init__(self, skeleton: Skeleton, device: torch.device) -> None:
        self.device, self._skeleton = device, skeleton
        self._slots = skeleton.slots
        self._sizes = [int(np.prod(slot.shape)) for slot in self._slots]
        tensors = [_placeholder(slot, device) for slot in self._slots]
        self.module, self.loss = skeleton.build(tensors)
        self._move_other_buffers(device)
        self._parameters = [
            (place, tensor)
            for place, tensor in enumerate(tensors)
            if isinstance(tensor, torch.nn.Parameter)
        ]
        self._empty = [tensor.data for _, tensor in self._parameters]
        self._buffers = self._owned_buffers(tensors)
        self._modes = [(part, part.training) for part in self.module.modules()]
        self._is_training: bool | None = None
        self._forward = {mode: SeededForward(device) for mode in (True, False)}
        self._flat: tuple[torch.Tensor, torch.Tensor] | None = None  # on another device

    def _move_other_buffers(self, device: torch.device) -> None:
        """Move to the device the buffers that are not in the flat vector.

        They are pickled with the module or the loss.
        """
        loss = self.loss.modules() if isinstance(self.loss, torch.nn.Module) else ()
        for part in (*self.module.modules(), *loss):
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.device != device:
                    part._buffers[name] = buffer.to(device)

    def _owned_buffers(
        self, tensors: list[torch.Tensor]
    ) -> list[tuple[int, dict[str, Any], torch.Tensor]]:
        """Return for each buffer its place, the dictionary that has it, and its tensor."""
        owners = dict(self.module.named_modules())
        return [
            (place, owners[slot.owner]._buffers, tensors[place])
            for place, slot in enumerate(self._slots)
            if slot.role == "buffer"
        ]

    @contextmanager
    def bound(
        self, parameters: Float32Array, gradient: Float32Array | None = None
    ) -> Iterator[torch.nn.Module]:
        """Bind the module to its values for the time of a call.

        Parameters
        ----------
        parameters
            The flat vector, float32 (n,), which is only read.
        gradient
            The flat vector, float32 (n,), that `backward` fills; None: no gradient is wanted.
        """
        self._set_mode(gradient is not None)
        given = as_tensor(parameters)
        try:
            if self.device.type == "cpu":
                self._view(given, None if gradient is None else torch.from_numpy(gradient).zero_())
            else:
                self._upload(given, gradient is not None)
            yield self.module
            if gradient is not None and self._flat is not None:
                torch.from_numpy(gradient).copy_(self._flat[1])
        finally:
            if self.device.type == "cpu":
                self._let_go()

    def _set_mode(self, is_training: bool) -> None:
        """Put the module into training or eval mode; frozen submodules stay as they were made."""
        if is_training == self._is_training:
            return
        self.module.train(is_training)
        if is_training and self._skeleton.is_training:
            for part, mode in self._modes:
                part.training = mode
        self._is_training = is_training

    def _view(self, parameters: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Make parameters, and their gradients, views of flat tensors."""
        values = parameters.split(self._sizes)
        slopes = None if gradient is None else gradient.split(self._sizes)
        for place, parameter in self._parameters:
            shape = self._slots[place].shape
            parameter.data = values[place].view(shape)
            if slopes is not None and parameter.requires_grad:
                parameter.grad = slopes[place].view(shape)

    def _let_go(self) -> None:
        """Keep no memory of a call."""
        for (_, parameter), empty in zip(self._parameters, self._empty, strict=True):
            parameter.grad = None
            parameter.data = empty

    def _upload(self, parameters: torch.Tensor, is_training: bool) -> None:
        if self._flat is None:
            size = sum(self._sizes)
            made = [torch.zeros(size, device=self.device) for _ in range(2)]
            self._flat = made[0], made[1]
            self._view(*self._flat)
        self._flat[0].copy_(parameters)
        if is_training:
            self._flat[1].zero_()

    def _read_buffers(self, parameters: torch.Tensor) -> None:
        """Give each buffer its values of the vector; a module may have put others in its place."""
        if not self._buffers:
            return
        values = parameters.split(self._sizes)
        for place, owned, tensor in self._buffers:
            slot = self._slots[place]
            owned[slot.attribute] = tensor.copy_(values[place].view(slot.shape))

    def run(
        self, inputs: torch.Tensor, parameters: Float32Array, seed: int, dtype: torch.dtype | None
    ) -> torch.Tensor:
        """Return the module's outputs in float32; the module is bound.

        Parameters
        ----------
        inputs
            float32, (examples, ...), on the device.
        parameters
            The vector that it is bound to, which has its buffers.
        seed
            Of the random numbers.
        dtype
            The dtype of the arithmetic where autocast allows it; None: float32.

        Raises
        ------
        ModelError
            The module returned something else than a tensor with a row for each example.
        """

        given = as_tensor(parameters)

        def forward() -> object:
            self._read_buffers(given)
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                return self.module(inputs)

        outputs = self._forward[bool(self._is_training)](forward, seed)
        if not isinstance(outputs, torch.Tensor) or outputs.shape[:1] != inputs.shape[:1]:
            got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs)
            raise ModelError(
                f"module must return one tensor with a row for each of the {len(inputs)} examples, "
                f"got {got}"
            )
        return outputs.float()

    def updated_buffers(self) -> Mapping[str, Float32Array]:
        """Return the buffers as the last call in training mode left them, as new arrays.

        They are float32, of the buffers' shapes.
        """
        return {
            self._slots[place].name: _as_array(owned[self._slots[place].attribute])
            for place, owned, _ in self._buffers
        }


def _placeholder(slot: Slot, device: torch.device) -> torch.Tensor:
    """Return a tensor of a slot's shape; that of a parameter takes no memory."""
    if slot.role == "buffer":
        return torch.empty(slot.shape, dtype=slot.dtype, device=device)
    empty = torch.zeros(1, device=device).expand(slot.shape)
    return torch.nn.Parameter(empty, requires_grad=slot.role == "trained")


def _as_array(tensor: torch.Tensor) -> Float32Array:
    found: Float32Array = tensor.detach().to("cpu", torch.float32, copy=True).numpy()
    return found
