"""The checks of `dbdask.check_model`: whether a model keeps the `dbdask.Model` contract.

Each check is a function of a `Trial` that raises Faulty, or notes a fault, with the remedy. A check
is left out if an earlier one found that it cannot work, so that one mistake is reported once.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.finite_differences import Probe, directions, noise_of, probe
from dbdask.models.layout import Layout, Parameter
from dbdask.models.member_checks import (
    checked_layout,
    initial_faults,
    listed_faults,
    starting_point,
    travelled,
)
from dbdask.models.model import Model
from dbdask.models.model_trial import Evaluated, ExampleBatch, Faulty, Trial, is_close
from dbdask.models.prediction_checks import check_predict

MOST_ARRAYS = 8  # arrays whose gradient is compared with differences, at most
LARGE = 1_000_000  # parameters of a model for which fewer arrays and threads are tried
WINDOW = 65_536  # elements of an array that are moved at most
THREADS = 4


@dataclass(frozen=True)
class ModelReport:
    """The report of `check_model` on a model that keeps the contract.

    Parameters
    ----------
    parameters
        Elements of the flat vector, buffers included.
    examples
        How many examples it was tried on.
    loss
        Their mean loss, near the initial parameters.
    outputs
        Outputs of an example.
    probes
        Number of directions in which the gradient equals finite differences.
    notes
        Properties that are allowed, and worth knowing.
    """

    parameters: int
    examples: int
    loss: float
    outputs: int
    probes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"the model keeps the contract: {self.parameters:,} parameters, {self.outputs} outputs "
            f"an example, mean loss {self.loss:.4g} of {self.examples} examples, gradient equal to "
            f"finite differences in {self.probes} directions"
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def check_on_batch(
    model: Model, batch: ExampleBatch, *, outputs: int | None = None, seed: int = 0
) -> ModelReport:
    """Try a copy of a model on a few examples, and report on it.

    Parameters
    ----------
    model
        The model.
    batch
        Inputs, targets and weights as training would give them.
    outputs
        How many outputs an example must have; None: not known.
    seed
        Of the initial parameters, and of random numbers in the model.

    Raises
    ------
    ModelError
        Names every fault and its remedy.
    """
    layout = checked_layout(model)
    faults: list[str] = []
    copy = travelled(model, layout, faults)
    # Values of its own, which training starts from, need not travel.
    source = model if hasattr(model, "starting_parameters") else copy
    faults += initial_faults(source, layout, seed)
    trial = Trial(copy, layout, batch, starting_point(source, layout, seed), seed, faults)
    probes: list[Probe] = []
    predicted: list[int] = []
    for check in (_check_base, _check_repeats):
        if trial.is_repeatable:
            trial.run(check)
    if trial.is_repeatable:
        for check in (_check_randomness, _check_sums, _check_loss_only, _check_buffers):
            trial.run(check)
        trial.run(lambda trial: probes.extend(_check_gradient(trial)))
        trial.run(_check_threads)
    trial.run(lambda trial: predicted.append(check_predict(trial, outputs)))
    if trial.faults:
        raise ModelError(listed_faults(trial.faults))
    mean = trial.base.loss / len(batch)
    return ModelReport(layout.size, len(batch), mean, predicted[0], len(probes), tuple(trial.notes))


def _check_base(trial: Trial) -> None:
    """Evaluate the examples for the first time, and keep the result as `trial.base`."""
    trial.is_repeatable = False  # until the call has succeeded
    loss, gradient, trial.first = trial.evaluate_arrays()
    if not math.isfinite(loss):
        raise Faulty(
            f"model.loss_and_gradient returned a loss of {loss} near the initial parameters; "
            "if inputs are far from 1 in size, standardize() the examples"
        )
    if gradient is not None and not np.isfinite(gradient).all():
        names = [p.name for p, part in _arrays(trial.layout) if _has_bad(gradient[part])]
        raise Faulty(
            f"model.loss_and_gradient gave a gradient that is not finite, of {', '.join(names)}"
        )
    trial.base = Evaluated(loss, gradient)
    trial.is_repeatable = True


def _has_bad(values: np.ndarray) -> bool:
    return not np.isfinite(values).all()


def _check_repeats(trial: Trial) -> None:
    """Evaluate again with the same seed, and again after earlier calls' arrays were changed."""
    loss, gradient, arrays = trial.evaluate_arrays()
    trial.is_repeatable = Evaluated(loss, gradient).is_close(trial.base)
    if not trial.is_repeatable:
        raise Faulty(
            "model.loss_and_gradient gives other results for the same arguments and seed: draw "
            "all that is random from np.random.default_rng(seed), and keep no state"
        )
    given = [*trial.first.items(), *arrays.items()]
    for _, array in given:
        array[...] = 1 if array.dtype.kind in "iu" else 1e3
    kept = [array.copy() for _, array in given]
    trial.is_repeatable = trial.evaluate().is_close(trial.base)
    if not trial.is_repeatable:
        raise Faulty(
            "model.loss_and_gradient keeps an array that it was given: its result changed when "
            "arrays of an earlier call were changed; keep a copy, or nothing"
        )
    written = {
        name
        for (name, array), before in zip(given, kept, strict=True)
        if not np.array_equal(array, before)
    }
    if written:
        raise Faulty(
            f"model.loss_and_gradient writes to {', '.join(sorted(written))} of an earlier call: "
            "keep no array that it is given"
        )


def _check_randomness(trial: Trial) -> None:
    trial.is_random = not trial.evaluate(seed=trial.seed + 1).is_close(trial.base)
    if trial.is_random:
        trial.notes.append("the loss depends on the seed, as with dropout")


def _check_sums(trial: Trial) -> None:
    """Give the examples twice over: a sum doubles, a mean does not."""
    twice = trial.batch.take(np.tile(np.arange(len(trial.batch)), 2))
    if trial.is_random:
        _check_random_sums(trial, twice)
        _check_weights(trial)
        return
    base, doubled = trial.base, trial.evaluate(twice)
    if is_close(doubled.loss, base.loss) and not is_close(doubled.loss, 2 * base.loss):
        raise Faulty(_MEAN)
    if not is_close(doubled.loss, 2 * base.loss):
        raise Faulty(
            f"model.loss_and_gradient returns no sum over the examples: the loss of {len(twice)} "
            f"examples, each given twice, is {_ratio(doubled.loss, base.loss)} times that of "
            f"{len(trial.batch)}; a penalty belongs into weight_decay= or l2="
        )
    _check_split(trial)
    _check_weights(trial)


_MEAN = (
    "model.loss_and_gradient returns a mean over the examples, or divides by their number: the "
    "same examples given twice have the same loss; return the sum"
)


def _check_random_sums(trial: Trial, twice: ExampleBatch) -> None:
    """Compare means over many seeds, in which random numbers cannot hide a factor of two."""
    losses = [
        np.mean([trial.evaluate(batch, seed=seed).loss for seed in range(16)])
        for batch in (trial.batch, twice)
    ]
    if abs(losses[1]) < 1.5 * abs(losses[0]):
        raise Faulty(_MEAN)


def _check_split(trial: Trial) -> None:
    """Give the examples in two parts: losses add up if each depends on its example alone."""
    count = len(trial.batch)
    if count < 2:
        return
    first = trial.evaluate(trial.batch.take(slice(0, count // 2)))
    second = trial.evaluate(trial.batch.take(slice(count // 2, count)))
    trial.mixes_examples = not is_close(first.loss + second.loss, trial.base.loss)
    if trial.mixes_examples:
        trial.notes.append(
            "an example's loss depends on the other examples of its minibatch, as with batch "
            "normalisation: losses then depend on batch_size"
        )


def _check_weights(trial: Trial) -> None:
    """Give weights of all kinds: one an example, and one a target element."""
    given = trial.batch.weights
    ones = np.ones(len(trial.batch), np.float32) if given is None else given
    _check_weights_like(trial, ones)
    if given is None and trial.batch.targets.ndim > 1:
        _check_weights_like(trial, np.ones(trial.batch.targets.shape, np.float32))


def _check_weights_like(trial: Trial, ones: Float32Array) -> None:
    base = trial.base
    shape = f"weights of shape {ones.shape}"
    plain = trial.evaluate(trial.batch.weighted(ones))
    if not plain.is_close(base):
        raise Faulty(f"model.loss_and_gradient must give the same with {shape} of 1 as with None")
    doubled = trial.evaluate(trial.batch.weighted(2 * ones))
    if not doubled.is_close(base, 2):
        raise Faulty(
            f"model.loss_and_gradient does not multiply each loss and its gradient by its weight: "
            f"with {shape} that are doubled the loss is {_ratio(doubled.loss, base.loss)} times "
            "that before, and must be 2 times; it must neither ignore weights nor divide by "
            "their sum"
        )
    if len(trial.batch) > 1 and not trial.is_random:
        _check_zero_weights(trial, ones, shape)


def _check_zero_weights(trial: Trial, ones: Float32Array, shape: str) -> None:
    """Give half of the examples the weight 0, and other targets, which may change nothing."""
    half = ones.copy()
    half[len(half) // 2 :] = 0
    targets = trial.batch.targets.copy()
    last = targets[len(half) // 2 :]
    last[...] = targets[0] if targets.dtype.kind in "iu" else last + 100
    weighted = trial.evaluate(trial.batch.weighted(half))
    other = trial.evaluate(ExampleBatch(trial.batch.inputs, targets, half))
    if not other.is_close(weighted):
        raise Faulty(
            f"model.loss_and_gradient counts what has weight 0: with {shape} its result changes "
            "with the targets of examples of weight 0"
        )


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.3g}" if base else "?"


def _check_gradient(trial: Trial) -> list[Probe]:
    """Return the probes in which the gradient agrees with finite differences.

    Raises
    ------
    Faulty
        It disagrees in one.
    """
    base = trial.base
    if base.gradient is None:
        return []

    scratch = np.empty(trial.layout.size, np.float32)

    def loss(point: Float32Array) -> float:
        return trial.loss_at(point, scratch)

    noise, rng = noise_of(loss, trial.parameters), np.random.default_rng(trial.seed)
    found: dict[str, list[Probe]] = {}
    for parameter, whole in _some_arrays(trial.layout):
        part, gradient = _window(whole, rng), base.gradient
        probes = [
            probe(loss, gradient, trial.parameters, part, direction, noise)
            for direction in directions(gradient[part], rng)
        ]
        found[parameter.name] = [p for p in probes if p is not None]
    wrong = {name: [p for p in probes if not p.agrees] for name, probes in found.items()}
    wrong = {name: probes for name, probes in wrong.items() if probes}
    if wrong:
        raise Faulty(_gradient_message(wrong, len(trial.batch)))
    right = [p for probes in found.values() for p in probes]
    if not right:
        trial.notes.append("the loss hardly changes with the parameters: no difference was seen")
    return right


def _gradient_message(wrong: dict[str, list[Probe]], examples: int) -> str:
    name, probes = next(iter(wrong.items()))
    worst = max(probes, key=lambda p: abs(p.claimed - p.measured))
    ratio = _constant_ratio([p for probes in wrong.values() for p in probes])
    return (
        f"model.loss_and_gradient gives a wrong gradient of {', '.join(map(repr, wrong))}: "
        f"{_how_wrong(ratio, examples)}along one direction of "
        f"{name!r} it says {worst.claimed:.4g}, and the loss changes by {worst.measured:.4g}"
    )


def _constant_ratio(probes: list[Probe]) -> float | None:
    """Return the ratio of the gradient to what it should be, if it is the same everywhere."""
    ratios = np.array([p.claimed / p.measured for p in probes if p.measured])
    if ratios.size < 3 or np.ptp(ratios) > 0.1 * abs(ratios.mean()):
        return None
    return float(ratios.mean())


def _how_wrong(ratio: float | None, examples: int) -> str:
    if ratio is None:
        return ""
    if abs(ratio + 1) < 0.05:
        return "its sign is wrong; "
    mean = " (is it divided by the number of examples?)" if abs(ratio * examples - 1) < 0.1 else ""
    return f"it is {ratio:.2g} times what it should be{mean}; "


def _arrays(layout: Layout) -> list[tuple[Parameter, slice]]:
    """Return the trained parameters, each with its slice of the flat vector."""
    pairs = zip(layout.parameters, layout.offsets, strict=True)
    return [(p, slice(start, start + p.size)) for p, start in pairs if p.kind == "trained"]


def _window(part: slice, rng: np.random.Generator) -> slice:
    """Return a slice of the flat vector, or a random window of a long one."""
    start = part.start + int(rng.integers(max(1, part.stop - part.start - WINDOW)))
    return slice(start, min(part.stop, start + WINDOW))


def _some_arrays(layout: Layout) -> list[tuple[Parameter, slice]]:
    arrays = _arrays(layout)
    most = MOST_ARRAYS if layout.size < LARGE else 3
    if len(arrays) <= most:
        return arrays
    return [arrays[round(n)] for n in np.linspace(0, len(arrays) - 1, most)]


def _check_loss_only(trial: Trial) -> None:
    if not hasattr(trial.model, "loss_only"):
        return
    loss = trial.loss_only(trial.batch)
    if not is_close(loss, trial.loss_only(trial.batch)):
        raise Faulty("model.loss_only gives other results for the same arguments and seed")
    is_another = trial.is_random or trial.mixes_examples
    if not is_another and not is_close(loss, trial.base.loss):
        raise Faulty(
            f"model.loss_only returned {loss:.6g}, and loss_and_gradient {trial.base.loss:.6g}, "
            "of the same examples: they must be the same"
        )


def _check_buffers(trial: Trial) -> None:
    """Ask for the buffers that a minibatch changed, twice over the same minibatch."""
    if not hasattr(trial.model, "updated_buffers"):
        return
    trial.evaluate()
    found = trial.buffers()
    trial.evaluate()
    if not is_close(trial.buffers(), found):
        raise Faulty(
            "model.updated_buffers gives other buffers after the same minibatch at the same "
            "parameters: compute them from the buffers in parameters, and keep no state between "
            "minibatches"
        )


def _check_threads(trial: Trial) -> None:
    """Call the model from several threads at once, with examples of their own."""
    rows = np.arange(len(trial.batch))
    count = THREADS if trial.layout.size < LARGE else 2  # each holds vectors of its own
    parts = [trial.batch.take(np.roll(rows, n)[: max(1, len(rows) - n)]) for n in range(count)]
    alone = [trial.evaluate(part) for part in parts]
    with ThreadPoolExecutor(count) as pool:
        is_right = all(_equal_in_threads(trial, pool, parts, alone) for _ in range(count))
    if not is_right:
        raise Faulty(
            "model.loss_and_gradient gives other results if several threads call it at once, as "
            "on a worker of several threads: keep what a call needs in variables of its own, not "
            "in the model"
        )


def _equal_in_threads(
    trial: Trial,
    pool: ThreadPoolExecutor,
    parts: list[ExampleBatch],
    alone: list[Evaluated],
) -> bool:
    try:
        together = list(pool.map(trial.evaluate, parts))
    except Faulty:
        return False  # alone it raised nothing
    return all(a.is_close(b) for a, b in zip(together, alone, strict=True))
