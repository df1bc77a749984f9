"""The model contract: the members that training, scoring and predicting need of a model."""

from inspect import signature
from typing import Protocol, runtime_checkable

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.errors import ModelError

MEMBERS = ("layout", "initial_parameters", "loss_and_gradient", "predict")
"""The members of every model."""

_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "initial_parameters": (("seed", "start", "stop"), ()),
    "loss_and_gradient": (("parameters", "inputs", "targets"), ("weights", "seed", "gradient")),
    "predict": (("parameters", "inputs"), ()),
    "loss_only": (("parameters", "inputs", "targets"), ("weights", "seed")),
    "updated_buffers": ((), ()),
    "starting_parameters": ((), ()),
}


@runtime_checkable
class Model(Protocol):
    """A differentiable model over one flat float32 vector.

    An object that keeps this contract can be trained, scored, predicted with and saved; it inherits
    from no class. `dbdask.check_model(model, examples)` tries a model and reports every fault.

    A model is pickled to every worker, and called from several threads at once. It may neither
    keep nor write to the arrays that it is given, except `gradient`, which it must fill in place.
    Losses and gradients are sums over the examples, not means, so that minibatches add up; the
    library divides once, by the sum of the weights. A penalty such as L2 is no part of the
    loss: give `weight_decay=` to the optimiser, or `l2=` to `sandblaster`.

    Attributes
    ----------
    layout
        The parameters in their order in the flat vector: a `dbdask.Layout`, or a list of
        (name, shape), (name, shape, dims) or (name, shape, dims, kind). A kind is "trained" or
        "buffer"; buffers are kept with the parameters, no optimiser changes them, and they change
        only if the model has `updated_buffers`.

    Notes
    -----
    Optional members, used if a model has them:

    `loss` : str
        "softmax", "logistic" or "squared": decides how targets are prepared (labels as whole
        numbers, or values as float32), and what outputs mean. Without it, integer targets mean
        classes, unless `output_shape` has one element: then a label has one output for each
        class, and a single output is a value. `Result.predict` gives a value as it is, `evaluate`
        gives its rmse and r2, and `predict_proba` refuses it.
    `input_shape`, `output_shape` : tuple of int
        Shapes of one example; examples of other shapes are refused before anything is read.
    `loss_only(parameters, inputs, targets, *, weights, seed)`
        Returns the loss of `loss_and_gradient`, without a gradient. Validation and
        `Result.evaluate` call it. A model that is random in training returns its loss without
        the randomness here.
    `description()`
        Returns JSON that distinguishes this model from others. A checkpoint keeps it, and a run
        with another description does not resume from it.

    `updated_buffers()`
        Returns the buffers that the calling thread's last `loss_and_gradient` changed, such as
        running means: a dictionary of names and arrays of the buffers' shapes, which are copied.
        It is called after each minibatch that counts. In Downpour a replica goes on with these
        values, and its push brings them along: the shards' buffers become those of the push that
        was applied last. So every state of a buffer was computed by one replica from a state that
        it had fetched, and replicas, however many, cannot make it diverge as a sum of their
        changes would. With one replica the buffers are those of a serial loop. In Sandblaster,
        where all minibatches of a pass start from the same buffers, those of the next point are
        the mean over the minibatches, by weight.
    `starting_parameters()`
        Returns the flat vector that training starts from, if the model has values of its own. It
        is called once, on the client, and goes to the shards directly: a large model need not
        carry its values in its pickle. `initial_parameters` is then not called.

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
    def layout(self) -> object: ...

    def initial_parameters(self, seed: int, start: int, stop: int) -> Float32Array:
        """Return elements `start` to `stop` of the initial vector, float32 (stop - start,).

        Each number depends only on the seed and its place in the vector, because every shard
        asks for its own slice, and the cut into shards must change nothing.
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
            element, (examples, *target_shape). An element of weight 0 counts for nothing, even
            if its target is NaN.
        seed
            Seeds all random numbers in the model, such as dropout. It comes from the minibatch's
            identity (the run's seed, epoch, portion, step), so that a minibatch that is computed
            again, elsewhere, is the same.
        gradient
            float32, of the layout's size, with arbitrary content: it must be overwritten in
            place, `gradient[:] = ...`. Elements of buffers need not be
            written: the library sets them to 0 afterwards.
        """
        ...

    def predict(self, parameters: Float32Array, inputs: Float32Array) -> FloatArray:
        """Return the outputs of each example, float (examples, outputs).

        If targets are classes, these are the probabilities of the classes; of a "logistic" loss
        with one output, that of the second class. Else they are values, one for each target
        element. The outputs of an example do not depend on other examples.
        """
        ...


def check_members(model: object) -> None:
    """Check that a model has every member, and that each takes its arguments.

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
        return  # compiled functions have no signature to check
    except TypeError as error:
        stars = ", ".join((*given, *(("*", *named) if named else ())))
        raise TypeError(f"model.{name} must take ({stars}): {error}") from error


def as_loss(value: object, method: str = "loss_and_gradient") -> float:
    """Return a loss as a float.

    Raises
    ------
    ModelError
        It is no number. A NumPy or torch scalar is one, an array of several elements is not.
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
