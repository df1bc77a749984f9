"""Whether a model fits the examples: said before anything is read."""

import math
from typing import Any

import numpy as np

from dbdask.data.examples import Examples

CONTRACT = ("layout", "initial_parameters", "loss_and_gradient", "predict")


def check_fit(model: Any, examples: Examples, validation: Examples | None) -> None:
    """Raise where the model does not keep the contract, or does not fit the examples' shapes."""
    for attribute in CONTRACT:
        if not hasattr(model, attribute):
            raise TypeError(
                f"model has no {attribute!r}: it must keep the dbdask.Model contract, "
                f"got {type(model).__name__}"
            )
    if examples.target_shape is None:
        raise ValueError("examples has no targets: training needs targets=")
    check_input_shape(model, examples, "examples")
    if validation is not None and validation.target_shape is None:
        raise ValueError("validation has no targets: it needs targets= to compare with")


def targets_for(model: Any, examples: Examples) -> Examples:
    """Return the examples with targets as the model's loss takes them.

    A model that says nothing of its outputs takes any whole number from 0 as a label.
    """
    outputs = getattr(model, "output_shape", None)
    return examples.for_loss(getattr(model, "loss", None), math.prod(outputs) if outputs else None)


def check_input_shape(model: Any, examples: Examples, name: str) -> None:
    """Raise where the model declares another input shape than the examples have."""
    wanted = getattr(model, "input_shape", None)
    if wanted is not None and tuple(wanted) != tuple(examples.input_shape):
        raise ValueError(
            f"{name}.input_shape is {tuple(examples.input_shape)}, the model's input_shape is "
            f"{tuple(wanted)}: build it with input_shape={name}.input_shape"
        )


def layout_size(vector: np.ndarray, layout: Any) -> None:
    """Raise where a flat vector has not the model's number of parameters."""
    if vector.shape != (layout.size,):
        raise ValueError(f"parameters has shape {vector.shape}, the model needs ({layout.size},)")
