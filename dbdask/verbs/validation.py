"""Validation beside training: the loss on examples, with the parameters of a snapshot copy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.data.supply import gather_blocks
from dbdask.numbers.portions import Portion
from dbdask.server.link import ServerHandle
from dbdask.server.room import open_room


@dataclass(frozen=True)
class Score:
    """Sums over examples; they add up over portions."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0
    squared_error: float = 0.0
    elements: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.loss + other.loss,
            self.weight + other.weight,
            self.correct + other.correct,
            self.squared_error + other.squared_error,
            self.elements + other.elements,
        )


def score_minibatch(model: Any, parameters: np.ndarray, batch: Any, scratch: np.ndarray) -> Score:
    """Score one minibatch; `scratch` takes the gradient that the loss brings along.

    Accuracy counts the largest output where targets are labels, squared error otherwise.
    """
    loss = model.loss_and_gradient(
        parameters,
        batch.inputs,
        batch.targets,
        weights=batch.weights,
        seed=0,
        gradient=scratch,
    )
    count = len(batch.inputs)
    weights = np.ones(count) if batch.weights is None else np.asarray(batch.weights, np.float64)
    example_weights = weights if weights.ndim == 1 else weights.reshape(count, -1).mean(axis=1)
    total = float(example_weights.sum())
    outputs = model.predict(parameters, batch.inputs)
    if np.issubdtype(batch.targets.dtype, np.integer):
        hits = outputs.reshape(count, -1).argmax(axis=1) == batch.targets
        return Score(loss, total, correct=float(example_weights @ hits))
    errors = (np.asarray(outputs, np.float64).reshape(batch.targets.shape) - batch.targets) ** 2
    shaped = np.broadcast_to(
        weights.reshape(weights.shape + (1,) * (errors.ndim - weights.ndim)), errors.shape
    )
    return Score(
        loss, total, squared_error=float((shaped * errors).sum()), elements=float(shaped.sum())
    )


def evaluate_portion(
    run: str, handle: ServerHandle, number: int, portion: Portion, job: bytes, *blocks: Any
) -> Score:
    """Score one portion of the validation examples with snapshot copy `number`."""
    room = open_room(run, job)
    parameters = room.copy_of(handle, number)
    scratch = room.buffer(handle.size)
    score = Score()
    reader = room.reader("validation")
    batches = reader.minibatches(portion, room.job.batch_size, blocks=gather_blocks(blocks))
    for batch in batches:
        score += score_minibatch(room.job.model, parameters, batch, scratch)
    room.give_back(scratch)
    return score
