"""Trials of a model: every call gets new arrays, and wrong changes of them are noted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dbdask.arrays import Float32Array, Int64Array
from dbdask.errors import ModelError
from dbdask.models.buffers import BufferUpdates, buffer_ranges
from dbdask.models.evaluation import (
    mark_unwritten,
    unwritten_message,
    unwritten_parameters,
)
from dbdask.models.layout import Layout
from dbdask.models.model import Model, as_loss


class Faulty(Exception):
    """A check of a model failed; the text says what is wrong and what to change."""


@dataclass(frozen=True)
class ExampleBatch:
    """A few examples, with the arrays and shapes of a minibatch."""

    inputs: Float32Array
    targets: np.ndarray
    weights: Float32Array | None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: slice | Int64Array) -> "ExampleBatch":
        """Return the examples at `rows`, a slice or int64 (n,), in which a row may occur again."""
        weights = None if self.weights is None else self.weights[rows]
        return ExampleBatch(self.inputs[rows], self.targets[rows], weights)

    def weighted(self, weights: Float32Array | None) -> "ExampleBatch":
        """Return the examples with other weights.

        They are float32, (examples,) or (examples, *target_shape), or None.
        """
        return ExampleBatch(self.inputs, self.targets, weights)


@dataclass(frozen=True)
class Evaluated:
    """The result of a call: the loss, and the gradient, None if it was not overwritten."""

    loss: float
    gradient: Float32Array | None

    def is_close(self, other: "Evaluated", factor: float = 1.0) -> bool:
        """Whether this is `factor` times another one, within the precision of float32."""
        return is_close(self.loss, factor * other.loss) and self.has_gradient_of(other, factor)

    def has_gradient_of(self, other: "Evaluated", factor: float = 1.0) -> bool:
        """Whether the gradient is `factor` times another's; True if one is not known."""
        if self.gradient is None or other.gradient is None:
            return True
        return is_close(self.gradient, factor * other.gradient)


def is_close(value: object, wanted: object) -> bool:
    """Whether two numbers, or two arrays in norm, are equal within the precision of float32."""
    value, wanted = np.asarray(value, np.float64), np.asarray(wanted, np.float64)
    scale = max(float(np.linalg.norm(value)), float(np.linalg.norm(wanted)))
    return float(np.linalg.norm(value - wanted)) <= 1e-3 * scale + 1e-6


@dataclass
class Trial:
    """A model, a few examples, a point, and the faults that were found so far.

    Parameters
    ----------
    model
        Has the members of `dbdask.Model`.
    layout
        Its layout.
    batch
        The examples.
    parameters
        The point at which it is tried: float32, of the layout's size.
    seed
        The seed that the model is given.
    """

    model: Model
    layout: Layout
    batch: ExampleBatch
    parameters: Float32Array
    seed: int
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_repeatable: bool = True  # it can be evaluated, and the same call gives the same result
    is_random: bool = False  # the seed changes the result
    mixes_examples: bool = False  # an example's loss depends on the others of its minibatch
    base: Evaluated = field(init=False)  # of `batch`, at `parameters`
    first: dict[str, np.ndarray] = field(init=False)  # the arrays of the first call

    def fault(self, text: str) -> None:
        """Note a fault, once."""
        if text not in self.faults:
            self.faults.append(text)

    def evaluate(
        self,
        batch: ExampleBatch | None = None,
        *,
        seed: int | None = None,
    ) -> Evaluated:
        """Return the result of `loss_and_gradient`, called with new arrays; raises Faulty."""
        loss, gradient, _ = self.evaluate_arrays(batch, seed=seed)
        return Evaluated(loss, gradient)

    def evaluate_arrays(
        self,
        batch: ExampleBatch | None = None,
        *,
        seed: int | None = None,
    ) -> tuple[float, Float32Array | None, dict[str, np.ndarray]]:
        """Return loss and gradient as `evaluate`, and the arrays that the model was given, by name.

        The gradient is float32 (n,).
        """
        arrays = {"parameters": self.parameters.copy()}
        arrays |= self._arrays(self.batch if batch is None else batch)
        gradient = np.empty(self.layout.size, np.float32)
        mark_unwritten(gradient)
        for part in buffer_ranges(self.layout):
            gradient[part] = 0
        loss = self._call("loss_and_gradient", arrays, gradient=gradient, seed=seed)
        names = unwritten_parameters(gradient, self.layout)
        if names:
            self.fault(unwritten_message(names, len(self.layout.parameters)))
        known = None if names else gradient.copy()
        return loss, known, arrays | {"gradient": gradient}

    def buffers(self) -> Float32Array:
        """Return the parameters, float32 (n,), with the buffers of the last call.

        Raises
        ------
        Faulty
            `updated_buffers` raises, returns buffers of other names or shapes, or a number that is
            not finite.
        """
        with _as_fault("updated_buffers", {}):
            updates = BufferUpdates(self.model, self.layout)
            bad = updates.take()
            found = self.parameters.copy()
            updates.write(found)
        if bad:
            raise Faulty(f"model.updated_buffers returned {bad!r} with NaN or infinity")
        return found

    def loss_at(self, point: Float32Array, gradient: Float32Array) -> float:
        """Return the loss at `point`; it and `gradient`, float32 (n,), are given uncopied."""
        arrays = self._arrays(self.batch)
        with _as_fault("loss_and_gradient", arrays):
            value = self.model.loss_and_gradient(
                point,
                arrays["inputs"],
                arrays["targets"],
                weights=arrays.get("weights"),
                seed=self.seed,
                gradient=gradient,
            )
            return as_loss(value)

    def loss_only(self, batch: ExampleBatch) -> float:
        """Call `loss_only`; raises Faulty."""
        arrays = {"parameters": self.parameters.copy()} | self._arrays(batch)
        return self._call("loss_only", arrays)

    def _arrays(self, batch: ExampleBatch) -> dict[str, np.ndarray]:
        given = {"inputs": batch.inputs, "targets": batch.targets, "weights": batch.weights}
        return {name: array.copy() for name, array in given.items() if array is not None}

    def _call(
        self,
        method: str,
        arrays: dict[str, np.ndarray],
        seed: int | None = None,
        **more: Float32Array,
    ) -> float:
        before = {name: array.copy() for name, array in arrays.items()}
        seed = self.seed if seed is None else seed
        with _as_fault(method, arrays | more):
            value = getattr(self.model, method)(
                arrays["parameters"],
                arrays["inputs"],
                arrays["targets"],
                weights=arrays.get("weights"),
                seed=seed,
                **more,
            )
            self._note_written(method, before, arrays)
            return as_loss(value, method)

    def predict(self, inputs: Float32Array) -> tuple[object, dict[str, np.ndarray]]:
        """Return the outputs of `predict`, uncopied, and the arrays that it was given, by name.

        `inputs` is float32 (examples, *input_shape).
        """
        arrays = {"parameters": self.parameters.copy(), "inputs": inputs.copy()}
        before = {name: array.copy() for name, array in arrays.items()}
        with _as_fault("predict", arrays):
            outputs = self.model.predict(arrays["parameters"], arrays["inputs"])
        self._note_written("predict", before, arrays)
        return outputs, arrays

    def _note_written(
        self, method: str, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
    ) -> None:
        for name, array in before.items():
            if not np.array_equal(array, after[name], equal_nan=array.dtype.kind == "f"):
                self.fault(
                    f"model.{method} writes to {name}: it may write to "
                    f"{'gradient alone' if method == 'loss_and_gradient' else 'none of its arrays'}"
                    f"; work on a copy ({name} = {name}.copy())"
                )

    def run(self, check: Callable[["Trial"], None]) -> None:
        """Make a check, and note as a fault what it raises as Faulty."""
        try:
            check(self)
        except Faulty as error:
            self.fault(str(error))


@contextmanager
def _as_fault(method: str, arrays: dict[str, np.ndarray]) -> Iterator[None]:
    """Turn an error that the model raises into Faulty, which says how the model was called."""
    try:
        yield
    except ModelError as error:
        raise Faulty(str(error)) from error
    except Exception as error:
        shapes = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
        raise Faulty(f"model.{method} raised {error!r}, given {shapes}") from error
