"""What a model would see of examples, laid out over their sample space."""

import numpy as np


def seen(examples):
    """Return the inputs at every position, and the targets; NaN and None where none is formed."""
    recipe = examples.recipe
    shape = tuple(recipe.sizes[dim] for dim in recipe.along)
    inputs = np.full((*shape, *examples.input_shape), np.nan, np.float32)
    targets = np.full((*shape, *(examples.target_shape or ())), np.nan)
    with examples.reader(prefetch=False) as reader:
        for number in recipe.block_rows.nonzero()[0].tolist():
            block = reader.block(number)
            at = tuple(positions[block.valid] for positions in block.positions)
            inputs[at] = block.minibatch.inputs
            if block.minibatch.targets is not None:
                targets[at] = block.minibatch.targets
    return inputs, targets


def as_float(array):
    """Return the numbers that an xarray object shows, as float64 with NaN where they are missing.

    The oracle: nothing of dbdask takes part in it.
    """
    values = np.asarray(array.values)
    if values.dtype != object:
        return values.astype(np.float64)
    flat = [np.nan if one is None or one != one else float(one) for one in values.ravel()]
    return np.array(flat).reshape(values.shape)
