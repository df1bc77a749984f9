"""A PyTorch module as a `dbdask.Model`."""

import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.json_types import JsonObject
from dbdask.models.layout import Layout
from dbdask.models.losses import LOSSES, probabilities
from dbdask.result import Result
from dbdask.torch.bound_module import BoundModule
from dbdask.torch.devices import (
    PRECISIONS,
    Device,
    check_precision,
    device_here,
    pickled_device,
    replicas_threads,
)
from dbdask.torch.losses import LossFunction, as_tensor, summed_loss
from dbdask.torch.skeleton import skeleton_of, values_of, with_values

VALUES_BYTES = 4 * 2**20
"""Values up to this size travel with a pickled model; larger ones go to the shards directly."""


class TorchModel:
    """A `torch.nn.Module` that keeps the `dbdask.Model` contract.

    Training starts from the values that the module has when it is given here: initialised by
    PyTorch, or trained elsewhere. The module itself is not changed. It is pickled without its
    values, and every thread that computes builds a copy of its own.

    Parameters
    ----------
    module
        Takes a float32 tensor (examples, *input_shape) and returns one tensor, (examples, ...).
        Its parameters are float32; those without `requires_grad` are not trained.
    loss
        "softmax" (labels), "logistic" (one-vs-all: labels, or 0/1 for each output) or "squared"
        (half the squared error, summed over outputs); the module then returns outputs before any
        softmax. Or a function (outputs, targets) -> losses, (examples,), which may be a loss of
        torch.nn with ``reduction="none"``; losses of shape (examples, ...) are summed over it.
    device
        "cpu", "cuda", "cuda:1", or a function of the worker's address that returns one. Outside a
        worker, the CPU stands in for a device that is not there.
    precision
        "float32", or "bfloat16": mixed precision by autocast. Parameters, gradients, the loss and
        the updates are float32 in both.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; a parameter is not float32, or has no shape yet; or a part of
        the module, which the error names, cannot be pickled.

    Notes
    -----
    Persistent buffers, such as the statistics of batch normalisation, are kept in the shards with
    the parameters. They are rounded to float32 there, so whole numbers beyond 2**24 are refused.
    In Downpour a push brings the replica's buffers along, and the shards replace theirs: each
    state of a buffer was computed by one replica from a state that it fetched, so that no number
    of replicas makes them diverge. In Sandblaster a pass makes them the weighted mean over the
    minibatches. Evaluation and prediction use the module in eval mode. Buffers with
    ``persistent=False`` travel with the module and stay as they are.

    Random numbers, such as dropout's, are drawn from torch's generators, seeded for each
    minibatch by its identity: the repeat of a minibatch is the same. Those of `random` and NumPy
    are not seeded. Forward passes that draw numbers take turns in a process of several replicas.

    Examples
    --------
    >>> import torch
    >>> model = TorchModel(torch.nn.Linear(3, 2), "softmax")
    >>> [parameter.name for parameter in model.layout.parameters]
    ['weight', 'bias']
    >>> bool(torch.equal(model.state_dict(model.initial_parameters(0, 0, 8))["bias"],
    ...                  torch.tensor(model.initial_parameters(0, 6, 8))))
    True
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: str | LossFunction,
        *,
        device: Device = "cpu",
        precision: str = "float32",
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(
                f"loss must be one of {', '.join(map(repr, LOSSES))}, or a function "
                f"(outputs, targets) that returns one loss for each example, got {loss!r}"
            )
        check_precision(precision)
        own = None if isinstance(loss, str) else loss
        self._skeleton = skeleton_of(module, own)
        self._values: Float32Array | None = values_of(module)
        self._device = pickled_device(device)
        self._precision = precision
        self.loss: str | None = loss if isinstance(loss, str) else None
        self._description = _describe(module, loss)
        self._layout = self._skeleton.layout
        self._threads = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """Return what travels: a large module's values do not, for the shards get them directly."""
        kept = ("_skeleton", "_device", "_precision", "loss", "_description")
        values = self._values
        travels = values is not None and values.nbytes <= VALUES_BYTES
        return {name: self.__dict__[name] for name in kept} | {
            "_values": values if travels else None
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._layout = self._skeleton.layout
        self._threads = threading.local()

    def __repr__(self) -> str:
        return f"<TorchModel of {self._description['module']}, {self.parameter_count:,} parameters>"

    @property
    def layout(self) -> Layout:
        """The parameters under their names in the module, then the buffers."""
        return self._layout

    @property
    def parameter_count(self) -> int:
        """Elements of the flat vector, buffers included."""
        return self._layout.size

    def starting_parameters(self) -> Float32Array:
        """Return the values of the module, float32 of (parameters,).

        Raises
        ------
        ModelError
            They did not travel with the pickle of this model, because they are large.
        """
        if self._values is None:
            raise ModelError(
                f"the values of {self._description['module']} did not travel with the model, "
                f"because they take more than {VALUES_BYTES >> 20} MiB: give parameters="
            )
        return self._values.copy()

    def initial_parameters(self, seed: int, start: int, stop: int) -> Float32Array:
        """Return a slice of the module's values, float32 (stop - start,), for any seed."""
        return self.starting_parameters()[start:stop]

    def loss_and_gradient(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
        gradient: Float32Array,
    ) -> float:
        """Return the weighted sum of losses, and overwrite `gradient`, float32 (n,).

        Shapes and dtypes are those of `dbdask.Model`.
        """
        bound = self._bound()
        with replicas_threads(), bound.bound(parameters, gradient):
            total = self._total(bound, parameters, inputs, targets, weights, seed)
            total.backward()
            return float(total.detach())

    def loss_only(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
    ) -> float:
        """Return the weighted sum of losses in eval mode.

        Shapes and dtypes are those of `dbdask.Model`.
        """
        bound = self._bound()
        with torch.no_grad(), replicas_threads(), bound.bound(parameters):
            return float(self._total(bound, parameters, inputs, targets, weights, seed))

    def predict(self, parameters: Float32Array, inputs: Float32Array) -> Float32Array:
        """Return float32 (examples, outputs).

        They are probabilities for softmax and logistic, else values.
        """
        bound = self._bound()
        with torch.no_grad(), replicas_threads(), bound.bound(parameters):
            outputs = self._outputs(bound, parameters, inputs, 0).cpu().numpy()
        rows: Float32Array = np.array(outputs.reshape(len(inputs), -1))
        return rows if self.loss is None else probabilities(self.loss, rows)

    def updated_buffers(self) -> Mapping[str, Float32Array]:
        """Return the buffers as this thread's last `loss_and_gradient` left them, by name.

        They are float32, of the buffers' shapes.
        """
        has_buffers = any(slot.role == "buffer" for slot in self._skeleton.slots)
        return self._bound().updated_buffers() if has_buffers else {}

    def _total(
        self,
        bound: BoundModule,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        weights: Float32Array | None,
        seed: int,
    ) -> torch.Tensor:
        outputs = self._outputs(bound, parameters, inputs, seed)
        return summed_loss(self.loss or bound.loss, outputs, np.asarray(targets), weights)

    def _outputs(
        self, bound: BoundModule, parameters: Float32Array, inputs: Float32Array, seed: int
    ) -> torch.Tensor:
        given = as_tensor(np.asarray(inputs, np.float32)).to(bound.device)
        return bound.run(given, parameters, seed, PRECISIONS[self._precision])

    def _bound(self) -> BoundModule:
        """Return the module of the calling thread, which is built when it is first needed."""
        found: BoundModule | None = getattr(self._threads, "bound", None)
        if found is None:
            device = device_here(pickle.loads(self._device))
            found = self._threads.bound = BoundModule(self._skeleton, device)
        return found

    def state_dict(
        self, result: Result | xr.Dataset | Float32Array
    ) -> "OrderedDict[str, torch.Tensor]":
        """Return trained parameters and buffers as the module's own `state_dict`.

        Parameters
        ----------
        result
            A `Result`, its `.parameters`, or a flat vector, float32 (n,).

        Raises
        ------
        ModelError, ValueError
            They are those of another model.
        """
        return with_values(self._skeleton, self._vector_of(result)).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Float32Array:
        """Take over the values of a `state_dict` of the module, from which training then starts.

        Returns
        -------
        array
            The values as a flat vector, float32 of (parameters,), as `parameters=` takes it.

        Raises
        ------
        RuntimeError
            A name is missing or unknown, or a shape is another one; torch names them.
        """
        zeros = np.zeros(self._layout.size, np.float32)
        module = with_values(self._skeleton, zeros)
        module.load_state_dict(state_dict)
        self._values = values_of(module)
        return self._values.copy()

    def _vector_of(self, result: Result | xr.Dataset | Float32Array) -> Float32Array:
        if isinstance(result, Result):
            return result.vector()
        if isinstance(result, np.ndarray):
            return result
        vector = np.empty(self._layout.size, np.float32)
        for name, view in self._layout.views(vector).items():
            if name not in result or result[name].shape != view.shape:
                raise ValueError(f"result has no {name!r} of shape {view.shape}, as the module has")
            view[...] = result[name].values
        return vector

    def description(self) -> JsonObject:
        """Return JSON that distinguishes the module: its classes, their names, and the loss."""
        return self._description


def _describe(module: torch.nn.Module, loss: str | LossFunction) -> JsonObject:
    parts = [f"{name}: {type(part).__qualname__}" for name, part in module.named_modules()]
    if not isinstance(loss, str):
        loss = getattr(loss, "__qualname__", type(loss).__qualname__)
    return {
        "torch": 1,
        "module": type(module).__qualname__,
        "parts": hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16],
        "loss": loss,
    }
