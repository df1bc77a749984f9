"""The model contract: what training, scoring and predicting ask of a network, whoever wrote it."""

from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.errors import ModelError

MEMBERS = ("layout", "initial_parameters", "loss_and_gradient", "predict")
"""What every model has."""

_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "initial_parameters": (("seed", "start", "stop"), ()),
    "loss_and_gradient": (("parameters", "inputs", "targets"), ("weights", "seed", "gradient")),
    "predict": (("parameters", "inputs"), ()),
    "loss_only": (("parameters", "inputs", "targets"), ("weights", "seed")),
}


@runtime_checkable
class Model(Protocol):
    """A differentiable model over one flat float32 vector.

    Whatever keeps this contract can be trained, scored, predicted with and saved; no class needs
    to be inherited. `dbdask.check_model(model, examples)` tries a model and says in words what
    is wrong.

    A model is pickled to every worker, and called from several threads at once. Arrays that it
    is given may neither be kept nor written to, but for `gradient`, which must be filled in
    place. Losses and gradients are sums over the examples, not means: so minibatches add up, and
    the library divides once, by the sum of the weights. A penalty such as L2 is no part of the
    loss: give `weight_decay=` to the optimiser, or `l2=` to `sandblaster`.

    Attributes
    ----------
    layout
        The parameters in their order in the flat vector: a `dbdask.Layout`, or a list of
        (name, shape), (name, shape, dims) or (name, shape, dims, kind). A kind is "trained" or
        "buffer"; buffers are kept with the parameters, and no update changes them.

    Notes
    -----
    Optional members, used if a model has them:

    `loss` : str
        "softmax", "logistic" or "squared": how targets are prepared (labels as whole numbers, or
        values as float32), and what outputs mean. Without it, integer targets mean classes,
        unless `output_shape` has one element: then a label has one output for each class, and a
        single output is a value. `Result.predict` gives a value as it is, `evaluate` gives its
        rmse and r2, and `predict_proba` refuses it.
    `input_shape`, `output_shape` : tuple of int
        Shapes of one example; examples of other shapes are refused before anything is read.
    `loss_only(parameters, inputs, targets, *, weights, seed)`
        Returns what `loss_and_gradient` returns, without a gradient. Validation and
        `Result.evaluate` call it. A model that is random in training returns its loss without
        the randomness here.
    `description()`
        Returns plain JSON that tells this model from others. A checkpoint keeps it, and a run
        with another description does not resume from it.

    `updated_buffers()` is reserved: this version does not call it, and buffers stay as they were
    initialised.

    Examples
    --------
    >>> class Line:
    ...     layout = [("slope", (1,)), ("offset", (1,))]
    ...     loss, output_shape = "squared", (1,)
    ...     def initial_parameters(self, seed, start, stop):
    ...         return np.zeros(stop - start, np.float32)
    ...     def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
    ...         error = self.predict(parameters, inputs) - targets.reshape(-1, 1)
    ...         weighted = error if weights is None else error * weights.reshape(-1, 1)
    ...         gradient[0] = (weighted * inputs.reshape(-1, 1)).sum()
    ...         gradient[1] = weighted.sum()
    ...         return 0.5 * float((weighted * error).sum())
    ...     def predict(self, parameters, inputs):
    ...         return parameters[0] * inputs.reshape(-1, 1) + parameters[1]
    >>> isinstance(Line(), Model)
    True
    """

    @property
    def layout(self) -> Any: ...

    def initial_parameters(self, seed: int, start: int, stop: int) -> Float32Array:
        """Return elements `start` to `stop` of the initial vector, shape (stop - start,).

        The numbers depend on the seed and their place alone: the same whatever the cut, because
        every shard asks for its own slice.
        """
        ...

    def loss_and_gradient(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None,
        seed: int,
        gradient: Float32Array,
    ) -> float:
        """Return the weighted sum of the examples' losses; overwrite `gradient` with its gradient.

        Parameters
        ----------
        parameters
            The flat vector, float32, of the layout's size.
        inputs
            float32 of shape (examples, *input_shape).
        targets
            int64 labels of shape (examples,), or float32 of (examples, *target_shape). Integers
            always mean classes.
        weights
            None: all are 1. Else float32: one weight an example, (examples,), or one a target
            element, (examples, *target_shape). What has weight 0 counts for nothing, whatever
            its target holds.
        seed
            For all that is random in the model, such as dropout. It comes from the minibatch's
            identity (the run's seed, epoch, portion, step), so that a minibatch that is computed
            again, elsewhere, is the same.
        gradient
            float32, of the layout's size, with arbitrary content: it must be overwritten in
            place, `gradient[:] = ...`. Of buffers it is 0, and need not be written.
        """
        ...

    def predict(self, parameters: Float32Array, inputs: Float32Array) -> FloatArray:
        """Return the outputs of each example, shape (examples, outputs).

        Probabilities if targets are classes: of each class, or with a "logistic" loss and one
        output that of the second class. Else values, one for each target element. An example's
        outputs do not depend on the others.
        """
        ...


def check_members(model: object) -> None:
    """Raise if a model lacks a member, or one cannot be called as this library calls it.

    Raises
    ------
    TypeError
        Names the member.
    """
    if isinstance(model, type):
        raise TypeError(f"model must be a model, got the class {model.__name__}: make one of it")
    for name in MEMBERS:
        if not hasattr(model, name):
            raise TypeError(
                f"model has no {name!r}: it must keep the dbdask.Model contract, "
                f"got {type(model).__name__}"
            )
    for name in _CALLS:
        if name in MEMBERS or hasattr(model, name):
            _check_call(model, name)


def _check_call(model: object, name: str) -> None:
    method = getattr(model, name)
    given, named = _CALLS[name]
    if not callable(method):
        raise TypeError(f"model.{name} must be a method, got {method!r}")
    try:
        signature(method).bind(*given, **dict.fromkeys(named))
    except ValueError:
        return  # it has no signature to look at, as what is compiled
    except TypeError as error:
        stars = ", ".join((*given, *(("*", *named) if named else ())))
        raise TypeError(f"model.{name} must take ({stars}): {error}") from error


def as_loss(value: object, method: str = "loss_and_gradient") -> float:
    """Return a loss as a number.

    Raises
    ------
    ModelError
        It is none: a NumPy or torch scalar is one, an array of several elements is not.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):
        number = value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ModelError(
            f"model.{method} must return the sum of the losses as one number, got {_brief(value)}"
        )
    return float(number)


def _brief(value: object) -> str:
    shape = getattr(value, "shape", ())
    return f"an array of shape {tuple(shape)}" if shape else repr(value)[:80]
