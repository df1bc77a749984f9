"""One minibatch through a model, and the check that the model fills its gradient.

A model that rebinds `gradient` (`gradient = ...`) instead of filling it leaves the buffer as it
was, and the run would train on old numbers without an error. So the first minibatch of every task
gets a buffer filled with a NaN of one fixed bit pattern, which no arithmetic produces: elements
that still hold it were not written. That costs two passes over one vector in each portion or
bundle, which has at least sixteen minibatches.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.buffers import BufferUpdates, buffer_ranges
from dbdask.models.layout import Layout, as_layout
from dbdask.models.model import Model, as_loss
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.optim.gradients import (
    divide_and_measure,
    first_bad_parameter,
    is_good,
    minibatch_seed,
    weight_of,
)
from dbdask.users_code import UsersCode

UNWRITTEN = np.uint32(0x7FC0DBDA)  # a quiet NaN with a payload of our own
BLOCK = 65_536  # floats


class Batch(Protocol):
    """The examples of one minibatch, as a model is given them."""

    @property
    def inputs(self) -> Float32Array:
        """Inputs, float32 (examples, *input_shape)."""

    @property
    def targets(self) -> np.ndarray | None:
        """int64 labels, (examples,), or float32 values, (examples, *target_shape)."""

    @property
    def weights(self) -> Float32Array | None:
        """Weights, float32 (examples,) or (examples, *target_shape); None: all are 1."""


class Step(Batch, Protocol):
    """A minibatch that knows its place in its portion."""

    @property
    def step(self) -> int: ...


class Evaluated(NamedTuple):
    """The result of a minibatch's evaluation, besides the gradient."""

    loss: float
    """Summed over the examples."""
    weight: float
    """Sum of the examples' weights. If it is 0 the minibatch counts for nothing."""
    norm: float
    """Euclidean norm of the gradient."""
    bad: str
    """The parameter whose gradient is not finite, a buffer that is not, or "the loss"; '' if all
    is finite."""


class Evaluator:
    """Evaluates the minibatches of one task with a model.

    Parameters
    ----------
    model
        Keeps the `dbdask.Model` contract.
    seed
        Of the run.
    """

    def __init__(self, model: Model, seed: int = 0) -> None:
        self.model, self.layout, self.seed = model, as_layout(model.layout), seed
        self._buffers = buffer_ranges(self.layout)
        self.updates = BufferUpdates(model, self.layout)
        self._is_first = True

    def minibatch(
        self,
        parameters: Float32Array,
        batch: Step,
        portion: tuple[int, int],
        *,
        gradient: Float32Array,
        as_mean: bool,
    ) -> Evaluated:
        """Evaluate a minibatch of a portion, and say whether the result may be used.

        Parameters
        ----------
        parameters, gradient
            Vectors, float32 (n,); `gradient` is overwritten.
        batch
            The minibatch.
        portion
            Epoch and number of the portion: with the step and the run's seed they decide on all
            that is random in the model.
        as_mean
            Whether the summed gradient is divided by the weight.

        Raises
        ------
        ModelError
            As `evaluate` does.
        """
        seed = minibatch_seed(self.seed, *portion, batch.step)
        loss = self.evaluate(parameters, batch, seed=seed, gradient=gradient)
        weight = weight_of(batch.weights, len(batch.inputs))
        divisor = weight if as_mean else 1.0
        norm = divide_and_measure(gradient, divisor) if weight > 0 else 0.0
        bad = self.updates.take() if is_good(loss, norm) else self._bad(norm, gradient)
        return Evaluated(loss, weight, norm, bad)

    def _bad(self, norm: float, gradient: Float32Array) -> str:
        """Name the culprit of a minibatch whose loss or gradient norm is not finite."""
        if math.isfinite(norm):
            return "the loss"
        names = [parameter.name for parameter in self.layout.parameters]
        return first_bad_parameter(gradient, names, list(self.layout.offsets))

    def evaluate(
        self, parameters: Float32Array, batch: Batch, *, seed: int, gradient: Float32Array
    ) -> float:
        """Return the summed loss of a minibatch; `gradient` takes its summed gradient.

        Parameters
        ----------
        parameters, gradient
            Vectors of the model's size, float32 (n,). `gradient` is overwritten; its elements of
            buffers are 0.
        batch
            The examples.
        seed
            For random numbers in the model.

        Raises
        ------
        ModelError
            The loss is no number; or the first minibatch did not overwrite the gradient.
        """
        assert batch.targets is not None  # a run refuses examples without targets
        if self._is_first:
            mark_unwritten(gradient)
        with UsersCode("model.loss_and_gradient"):
            loss = self.model.loss_and_gradient(
                parameters,
                batch.inputs,
                batch.targets,
                weights=batch.weights,
                seed=seed,
                gradient=gradient,
            )
        for part in self._buffers:
            gradient[part] = 0
        if self._is_first:
            check_written(gradient, self.layout)
            self._is_first = False
        return as_loss(loss)


def loss_of_minibatch(
    model: Model | PiecewiseNetwork,
    parameters: Float32Array,
    batch: Batch,
    *,
    scratch: Float32Array,
) -> float:
    """Return the summed loss of a minibatch, from `loss_only` if the model has it.

    Otherwise `loss_and_gradient` writes a gradient into `scratch`. `parameters` and `scratch` are
    vectors of the model's size, float32 (n,).

    Raises
    ------
    ModelError
        The loss is no number.
    """
    assert batch.targets is not None
    if isinstance(model, PiecewiseNetwork) or hasattr(model, "loss_only"):
        with UsersCode("model.loss_only"):
            loss = model.loss_only(
                parameters, batch.inputs, batch.targets, weights=batch.weights, seed=0
            )
        return as_loss(loss, "loss_only")
    with UsersCode("model.loss_and_gradient"):
        loss = model.loss_and_gradient(
            parameters, batch.inputs, batch.targets, weights=batch.weights, seed=0, gradient=scratch
        )
    return as_loss(loss)


def mark_unwritten(gradient: Float32Array) -> None:
    """Fill a vector, float32 (n,), with the NaN that marks elements as not written."""
    gradient.view(np.uint32).fill(UNWRITTEN)


def unwritten_parameters(gradient: Float32Array, layout: Layout) -> list[str]:
    """Return the trained parameters with an unwritten element in `gradient`, float32 (n,)."""
    return [
        parameter.name
        for parameter, offset in zip(layout.parameters, layout.offsets, strict=True)
        if parameter.kind == "trained" and is_unwritten(gradient[offset : offset + parameter.size])
    ]


def is_unwritten(gradient: Float32Array) -> bool:
    """Return whether an element of a vector, float32 (n,), holds the mark; search in blocks."""
    bits = gradient.view(np.uint32)
    return any(
        bool((bits[start : start + BLOCK] == UNWRITTEN).any())
        for start in range(0, bits.size, BLOCK)
    )


def check_written(gradient: Float32Array, layout: Layout) -> None:
    """Check that a gradient, float32 (n,), was overwritten and kept its shape.

    Raises
    ------
    ModelError
        Part of it was not overwritten, or its shape was changed.
    """
    if gradient.shape != (layout.size,):
        raise ModelError(
            f"model.loss_and_gradient changed the shape of gradient from ({layout.size},) to "
            f"{gradient.shape}: fill it in place"
        )
    names = unwritten_parameters(gradient, layout)
    if names:
        raise ModelError(unwritten_message(names, len(layout.parameters)))


def unwritten_message(names: list[str], count: int) -> str:
    """Return the error text for parameters that a model did not write, with the remedy."""
    which = "gradient" if len(names) == count else f"the gradient of {_listed(names)}"
    return (
        f"model.loss_and_gradient did not overwrite {which}: fill the vector that is given in "
        "place (gradient[:] = ...), do not bind the name anew (gradient = ...), and do not add to "
        "what it holds; dbdask.check_model(model, examples) tries a model"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} other parameters"
