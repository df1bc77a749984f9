"""Try a model on a few examples, before any cluster has to find out."""

import math
from typing import Any

from dbdask.data.examples import Examples
from dbdask.errors import DataError
from dbdask.metrics.scores import NOTHING
from dbdask.models.model import Model
from dbdask.models.model_checks import ModelReport, check_on_batch
from dbdask.models.model_trial import ExampleBatch
from dbdask.run import arguments
from dbdask.run.fitting import check_contract, check_fit, targets_for
from dbdask.schedule.portions import Portion


def check_model(model: Any, examples: Examples, *, size: int = 8, seed: int = 0) -> ModelReport:
    """Try a model on a few examples in this process, and say in words what is wrong.

    It looks at the layout and at slices of the initial parameters; compares the gradient with
    finite differences, in float32 as training computes; and tries that losses are sums over the
    examples and multiply by the weights, that `gradient` is filled in place and nothing else is
    written to or kept, that the same seed gives the same result, also from several threads at
    once, and that predictions have the shape and the meaning that the loss's name says.

    Parameters
    ----------
    model
        The model, which must keep the `dbdask.Model` contract. A copy is tried; memory holds some
        ten vectors of its size.
    examples
        The examples to train on; one chunk of them is read.
    size
        How many examples the model is tried on.
    seed
        Of the initial parameters, and of what is random in the model.

    Returns
    -------
    ModelReport
        Prints as a line, and a note for each thing that is allowed and worth knowing.

    Raises
    ------
    ModelError
        Names every fault that was found, and what to change.
    TypeError, ValueError
        The model lacks a member, or does not fit the examples' shapes.
    DataError
        The examples are wrong, or none has a weight above 0.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dbdask
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    >>> data = xr.Dataset({"x": (("t", "f"), x), "y": ("t", y)})
    >>> examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    >>> network = dbdask.Network(input_shape=3, layers=[dbdask.Dense(1)], loss="squared")
    >>> report = dbdask.check_model(network, examples)
    >>> report.parameters, report.outputs
    (4, 1)
    """
    arguments.at_least("size", size, 1)
    arguments.at_least("seed", seed, 0)
    if not isinstance(examples, Examples):
        raise TypeError(f"examples must be dbdask.Examples, got {type(examples).__name__}")
    check_contract(model)
    check_fit(model, examples, None)
    prepared = targets_for(model, examples)
    return check_on_batch(
        model, _first_examples(prepared, size), outputs=_outputs(model, prepared), seed=seed
    )


def _outputs(model: Model, examples: Examples) -> int | None:
    """Return how many outputs an example must have; None if nothing says so."""
    declared = getattr(model, "output_shape", None)
    if declared is not None:
        return int(math.prod(declared))
    labels = examples.output_classes
    if examples.has_labels:
        one_for_two = getattr(model, "loss", None) == "logistic"
        return None if labels is None or one_for_two else len(labels)
    shape = examples.target_shape
    return None if shape is None else math.prod(shape)


def _first_examples(examples: Examples, size: int) -> ExampleBatch:
    """Read the first chunk that has examples with a weight, and return some of them."""
    prepared = examples.prepared_like(examples)
    with prepared.reader(prefetch=False) as reader:
        for block in range(prepared.grid.block_count):
            portion = Portion(0, block, 0, (block,), 0, prepared.grid.rows(block), (0, 0, 1))
            for batch in reader.minibatches(portion, size):
                if batch.weights is None or batch.weights.any():
                    assert batch.targets is not None
                    return ExampleBatch(batch.inputs, batch.targets, batch.weights)
    raise DataError(NOTHING)
