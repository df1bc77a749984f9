"""Checks that a model fits the examples, before anything is read."""

import math

import numpy as np

from dbdask.data.examples import Examples
from dbdask.models.layout import Layout
from dbdask.models.model import Model, check_members


def check_contract(model: object) -> None:
    """Check that a model keeps the contract.

    Raises
    ------
    TypeError
        A member is missing, or cannot be called with its arguments.
    """
    check_members(model)


def check_fit(model: Model, examples: Examples, validation: Examples | None) -> None:
    """Check that a model fits the shapes of the examples and of the validation examples.

    Raises
    ------
    ValueError
        The examples have no targets, or another shape than the model declares.
    TypeError
        The loss takes numbers, and the targets are text.
    """
    for name, given in (("examples", examples), ("validation", validation)):
        if given is None:
            continue
        if given.target_shape is None:
            raise ValueError(f"{name} has no targets: give targets= to dbdask.Examples")
        if name == "examples" or given.recipe.knows_categories:
            check_input_shape(model, given, name)
    outputs = getattr(model, "output_shape", None)
    if outputs is not None:
        check_targets(getattr(model, "loss", None), math.prod(outputs), examples)


def check_targets(loss: str | None, outputs: int, examples: Examples) -> None:
    """Check that the targets fit a loss over so many outputs.

    Raises
    ------
    ValueError
        The shape of the targets, or the number of their classes, does not fit.
    TypeError
        The loss takes numbers, and the targets are text.
    """
    shape, labels = examples.target_shape, examples.output_classes
    assert shape is not None
    if loss == "softmax" and shape != ():
        raise ValueError(
            f"loss 'softmax' takes one label an example, examples.target_shape is {shape}: "
            "give one variable of labels as targets, or another loss"
        )
    elements = math.prod(shape)
    one_vs_all = loss == "logistic" and shape == ()
    if loss in ("squared", "logistic") and not one_vs_all and elements != outputs:
        raise ValueError(
            f"examples.target_shape is {shape}, the model has {outputs} outputs: a {loss!r} loss "
            f"needs one output for each of the {elements} targets"
        )
    if loss == "squared" and examples.has_text:
        raise TypeError("loss 'squared' takes numbers, the targets are text: give 'softmax'")
    one_output = loss == "logistic" and outputs == 1
    if loss != "squared" and labels is not None and len(labels) != outputs and not one_output:
        raise ValueError(
            f"examples has {len(labels)} classes, the model has {outputs} outputs: "
            "give the last layer one unit for each class"
        )


def targets_for(model: Model, examples: Examples) -> Examples:
    """Return the examples with targets as the model's loss takes them.

    A model that says nothing of its outputs takes any whole number from 0 as a label.
    """
    shape = getattr(model, "output_shape", None)
    return examples.for_loss(
        getattr(model, "loss", None), None if shape is None else math.prod(shape)
    )


def check_input_shape(model: Model, examples: Examples, name: str) -> None:
    """Check that the examples have the input shape that the model declares, if it declares one.

    Raises
    ------
    ValueError
        The shapes differ.
    """
    wanted = getattr(model, "input_shape", None)
    if wanted is not None and tuple(wanted) != tuple(examples.input_shape):
        raise ValueError(
            f"{name}.input_shape is {tuple(examples.input_shape)}, the model's input_shape is "
            f"{tuple(wanted)}: build it with input_shape={name}.input_shape"
        )


def layout_size(vector: np.ndarray, layout: Layout) -> None:
    """Check that a flat vector has one element for each parameter: (layout.size,), of any dtype.

    Raises
    ------
    ValueError
        It has another shape.
    """
    if vector.shape != (layout.size,):
        raise ValueError(f"parameters has shape {vector.shape}, the model needs ({layout.size},)")
