"""Operations on a replica's gradient before it is sent: divide, measure, check, clip."""

import math

import numpy as np

from dbdask.arrays import Float32Array

BLOCK = 65_536  # floats: a block stays in the cache between the division and the sum


def divide_and_measure(gradient: Float32Array, weight: float) -> float:
    """Divide a summed gradient, (n,), by the sum of weights in place; return its Euclidean norm.

    The norm is infinite or NaN exactly when a component of the result is, or when the squares
    overflow float32 within a block; both are reasons to refuse the gradient.
    """
    squares = 0.0
    divisor = np.float32(weight)
    with np.errstate(over="ignore", invalid="ignore"):  # the norm shows it
        for start in range(0, gradient.size, BLOCK):
            block = gradient[start : start + BLOCK]
            if weight != 1.0:
                np.divide(block, divisor, out=block)
            squares += float(np.dot(block, block))
    return math.sqrt(squares) if squares >= 0.0 else math.nan


def is_good(loss: float, norm: float) -> bool:
    """Whether a minibatch's loss and gradient norm may be sent to the shards."""
    return math.isfinite(loss) and math.isfinite(norm)


def clip(gradient: Float32Array, norm: float, clip_norm: float | None) -> None:
    """Scale a gradient, float32 (n,), in place so that its norm is at most `clip_norm`."""
    if clip_norm is not None and norm > clip_norm:
        np.multiply(gradient, np.float32(clip_norm / norm), out=gradient)


def first_bad_parameter(gradient: Float32Array, names: list[str], offsets: list[int]) -> str:
    """Return the name of the parameter with the first component that is not finite.

    If every component is finite, it is the parameter with the largest component, whose square
    overflows. `gradient` is float32 (n,); `offsets` holds the position of each parameter's first
    component in it.
    """
    bad = np.flatnonzero(~np.isfinite(gradient))
    worst = int(bad[0]) if bad.size else int(np.argmax(np.abs(gradient)))
    return names[int(np.searchsorted(offsets, worst, side="right")) - 1]


def minibatch_seed(seed: int, epoch: int, portion: int, step: int) -> int:
    """Return the model's seed for a minibatch, from its identity: a repeat gets the same seed."""
    return int(np.random.SeedSequence((seed, epoch, portion, step)).generate_state(1)[0])


def weight_of(weights: Float32Array | None, examples: int) -> float:
    """Return the sum of the weights of a minibatch's examples.

    `weights` is float32 (examples,), or float32 (examples, *target_shape), of which an example's
    weight is the mean, or None if all weights are 1.
    """
    if weights is None:
        return float(examples)
    weights = np.asarray(weights)
    per_example = weights if weights.ndim == 1 else weights.reshape(len(weights), -1).mean(axis=1)
    return float(np.sum(per_example, dtype=np.float64))
