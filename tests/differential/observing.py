"""What dbdask does with a dataset: every example that it yields, or the error that comes."""

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from dbdask import Examples

from .arguments import Asked, Cut


@dataclass
class Read:
    """All examples of all blocks.

    Parameters
    ----------
    positions, valid
        The positions that were looked at, and which of them are examples.
    inputs, targets, weights
        Of those that are, in the same order.
    """

    positions: np.ndarray
    valid: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray | None
    weights: np.ndarray | None


@dataclass
class Observed:
    """What came of a trial."""

    error: Exception | None = None
    stage: str = ""
    parts: list[list[np.ndarray] | None] = field(default_factory=list)  # of every split
    classes: list[Any] | None = None
    outputs: int | None = None
    read: Read | None = None
    epochs: list[str] = field(default_factory=list)  # what is wrong with an epoch
    warned: list[warnings.WarningMessage] = field(default_factory=list)
    examples: Examples | None = None
    length: int = 0


def observe(data: Any, asked: Asked) -> Observed:
    """Do what is asked; an error ends it and is kept."""
    found = Observed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _observe(data, asked, found)
        except Exception as error:  # of every kind: the comparison says which are right
            found.error = error
    found.warned = list(caught)
    return found


def _observe(data: Any, asked: Asked, found: Observed) -> None:
    found.stage = "Examples"
    examples = Examples(data, **_keywords(data, asked))
    for cut in asked.cuts:
        found.stage = cut.method
        examples = _cut(examples, cut, found)
    found.length = len(examples)
    if asked.classes == "find":
        found.stage = "find_classes"
        found.classes = examples.find_classes()
        examples = examples.with_classes(found.classes)
    if asked.standardize is not None:
        found.stage = "standardize"
        examples = examples.standardize(**asked.standardize)
    found.stage = "for_loss"
    found.outputs = len(found.classes) if found.classes is not None else asked.outputs
    examples = examples.for_loss(asked.loss, found.outputs)
    found.examples = examples
    found.stage = "read"
    if asked.missing == "mask":
        examples = examples.prepared_like(examples)
    with examples.reader(prefetch=False) as reader:  # one: what it has read feeds epochs, too
        found.read = _read_blocks(examples, reader)
        found.stage = "minibatches"
        found.epochs = _epochs(examples, asked.batch, found.read, reader)


def _keywords(data: Any, asked: Asked) -> dict[str, Any]:
    keywords = asked.keywords()
    if asked.as_arrays and isinstance(data, xr.Dataset):
        for role in ("inputs", "targets", "weights", "groups"):
            given = keywords.get(role)
            if isinstance(given, str):
                keywords[role] = data[given]
            elif given:
                keywords[role] = [data[name] for name in given]
    return keywords


def _cut(examples: Examples, cut: Cut, found: Observed) -> Examples:
    if cut.method == "isel":
        return examples.isel({cut.dim: cut.indexer})
    if cut.method == "sel":
        return examples.sel({cut.dim: cut.indexer})
    if cut.method == "where":
        return examples.where(cut.indexer)
    parts = examples.split(*cut.indexer, seed=cut.seed)
    try:
        # Which labels there are is not known yet: as values they are read all the same.
        values = [part if examples.has_text else part.with_classes(None) for part in parts]
        found.parts.append([read_blocks(part).positions for part in values])
    except ValueError:
        found.parts.append(None)
    return parts[cut.part]


def read_blocks(examples: Examples) -> Read:
    """Read every block that holds an example."""
    with examples.reader(prefetch=False) as reader:
        return _read_blocks(examples, reader)


def _read_blocks(examples: Examples, reader: Any) -> Read:
    portions = examples.cut(64, 64).contiguous()
    numbers = sorted({block for portion in portions for block in portion.blocks})
    blocks = [reader.block(number) for number in numbers]
    positions = [np.stack(block.positions, axis=-1) for block in blocks]
    batches = [block.minibatch for block in blocks]
    return Read(
        np.concatenate(positions),
        np.concatenate([block.valid for block in blocks]),
        np.concatenate([batch.inputs for batch in batches]),
        None if batches[0].targets is None else np.concatenate([b.targets for b in batches]),
        joined_weights(batches),
    )


def joined_weights(batches: list[Any]) -> np.ndarray | None:
    """Return the weights of several minibatches: None is 1, and masked elements have their own."""
    if all(batch.weights is None for batch in batches):
        return None
    return np.concatenate([full_weights(batch) for batch in batches])


def full_weights(batch: Any) -> np.ndarray:
    """Return a weight for every target element of a minibatch."""
    shape = batch.inputs.shape[:1] if batch.targets is None else batch.targets.shape
    weights = np.ones(shape[0], np.float32) if batch.weights is None else batch.weights
    weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    return np.broadcast_to(weights, shape).astype(np.float32)


def _epochs(examples: Examples, batch_size: int, read: Read, reader: Any) -> list[str]:
    """Say what is wrong with an epoch, drawn or not: it must hold each row of the blocks once."""
    wrong = []
    wanted = _rows(read.inputs, read.targets, _full(read))
    cut = examples.cut(2 * batch_size, batch_size)
    orders = {"store order": cut.contiguous(), "epoch 3": cut.portions(1, 3)}
    for name, portions in orders.items():
        rows: Counter[bytes] = Counter()
        for portion in portions:
            for batch in reader.minibatches(portion, batch_size):
                if len(batch.inputs) > batch_size:
                    wrong.append(f"{name}: a minibatch of {len(batch.inputs)} rows")
                rows += _rows(batch.inputs, batch.targets, full_weights(batch))
        if rows != wanted:
            more, less = rows - wanted, wanted - rows
            wrong.append(f"{name}: {more.total()} rows too many, {less.total()} too few")
    return wrong


def _full(read: Read) -> np.ndarray:
    if read.weights is not None:
        return read.weights
    shape = read.inputs.shape[:1] if read.targets is None else read.targets.shape
    return np.ones(shape, np.float32)


def _rows(inputs: np.ndarray, targets: np.ndarray | None, weights: np.ndarray) -> Counter[bytes]:
    rows = []
    for n in range(len(inputs)):
        target = b"" if targets is None else np.ascontiguousarray(targets[n]).tobytes()
        rows.append(np.ascontiguousarray(inputs[n]).tobytes() + target + weights[n].tobytes())
    return Counter(rows)
