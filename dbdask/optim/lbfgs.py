"""L-BFGS that computes on inner products, so that vectors stay in their shards (section 4.2).

Source: Chen, Wang and Zhou, *Large-scale L-BFGS using MapReduce*, NIPS 2014, the vector-free
two-loop recursion. One command returns the inner products of the new vectors with all others, the
recursion runs on scalars, and one command forms the direction. The method is a generator: it
yields requests (`Round`, `Evaluate`, `Accepted`) and is sent their answers, so the same code runs
on NumPy arrays and on a parameter server.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbdask.arrays import Float64Array
from dbdask.optim.line_search import Trial, strong_wolfe
from dbdask.optim.vectors import Add, Combine, Command, Copy, Dot, Gram, Largest

X, GRADIENT, DIRECTION = "parameters", "gradient", "direction"
TRIAL, TRIAL_GRADIENT = "trial", "trial_gradient"
PATIENCE = 10  # iterations in a row whose decrease is below the resolution of the loss
LEAST_CURVATURE = 1e-10  # a pair with s.y below this share of |s||y| is skipped


@dataclass(frozen=True)
class Round:
    """A request for one round trip of commands to every slice, answered by merged answers."""

    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Evaluate:
    """A request for a pass over the data: the answer is the mean loss at `point`, and `after`'s.

    The mean gradient goes into `into`.
    """

    before: tuple[Command, ...]
    point: str
    into: str
    after: tuple[Command, ...]  # done when the gradient is whole; their answers are returned


@dataclass(frozen=True)
class Accepted:
    """A report that the state holds a new point; the answer True ends the method."""


Request = Round | Evaluate | Accepted

Answer = Any
"""The answer to a request: answers of commands, a loss beside them, or a truth value."""


@dataclass(frozen=True)
class Settings:
    """The settings of the method."""

    iterations: int = 100
    history_length: int = 10
    tolerance: float = 1e-5
    l2: float = 0.0
    epsilon: float = float(np.finfo(np.float32).eps)  # resolution of a loss, relative to it


@dataclass
class State:
    """All that the method knows beside the vectors; a checkpoint keeps it.

    The Gram matrix is of the pairs' s, then their y, then the gradient; a pair is named by its
    slot, and `pairs` lists the slots in use, oldest first.
    """

    iteration: int = 0
    evaluations: int = 0
    loss: float = 0.0
    largest: float = 0.0  # magnitude of the gradient's components
    squared_norm: float = 0.0  # of the gradient
    step_length: float = 0.0
    stalled: int = 0  # iterations in a row whose decrease is below the resolution of the loss
    pairs: list[int] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)  # "s0 y1": their inner product

    def product(self, left: str, right: str) -> float:
        """Return an inner product, kept in either order of its vectors."""
        return self.products[" ".join(sorted((left, right)))]

    def keep(self, rows: Sequence[str], columns: Sequence[str], gram: Float64Array) -> None:
        """Keep the answer of a `Gram` command: float64, (rows, columns)."""
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                self.products[" ".join(sorted((row, column)))] = float(gram[i, j])

    @property
    def started(self) -> bool:
        """Whether the first point is known."""
        return self.evaluations > 0


def names_of(state: State) -> list[str]:
    """Return the names of the vectors that a checkpoint keeps beside the state."""
    pairs = [f"{letter}{slot}" for slot in state.pairs for letter in "sy"]
    return [X, GRADIENT, *pairs] if state.started else [X]


def minimise(state: State, settings: Settings) -> Generator[Request, Answer, str]:
    """Minimise from `parameters`, or continue from a state; return the reason of the stop.

    The reasons are `tolerance`, `iterations`, `search_failed`, `stopped`, and `precision`: the
    decrease was below the resolution of the loss in `PATIENCE` iterations in a row, or the search
    failed and had predicted such a decrease.
    """
    if not state.started:
        yield from _first_point(state, settings)
        if (yield Accepted()):
            return "stopped"
    while True:
        if not math.isfinite(state.loss) or not math.isfinite(state.largest):
            return "search_failed"
        if state.largest <= settings.tolerance:
            return "tolerance"
        if state.stalled >= PATIENCE:
            return "precision"
        if state.iteration >= settings.iterations:
            return "iterations"
        trial, predicted = yield from _iterate(state, settings)
        if trial is None and state.pairs:
            state.pairs.clear()  # once more, along the steepest descent
            trial, predicted = yield from _iterate(state, settings)
        if trial is None:
            return "precision" if predicted <= _resolution(state, settings) else "search_failed"
        if (yield Accepted()):
            return "stopped"


def _first_point(state: State, settings: Settings) -> Generator[Request, Answer, None]:
    after = (
        Add(GRADIENT, settings.l2, X),
        Dot(X, X),
        Largest(GRADIENT),
        Dot(GRADIENT, GRADIENT),
    )
    loss, answers = yield Evaluate((), X, GRADIENT, after)
    _, norm, state.largest, state.squared_norm = answers
    state.loss = loss + 0.5 * settings.l2 * norm
    state.products = {f"{GRADIENT} {GRADIENT}": state.squared_norm}
    state.evaluations += 1


def _iterate(
    state: State, settings: Settings
) -> Generator[Request, Answer, tuple[Trial | None, float]]:
    """Make one iteration; return the accepted trial, if any, and the predicted decrease."""
    coefficients = direction_coefficients(state)
    slope = sum(factor * state.product(name, GRADIENT) for name, factor in coefficients.items())
    yield Round((Combine(DIRECTION, coefficients),))
    first = 1.0 if state.pairs else min(1.0, 1.0 / math.sqrt(state.squared_norm))
    predicted = 0.5 * first * abs(slope)
    if slope >= 0:
        return None, predicted
    search = strong_wolfe(state.loss, slope, first, _resolution(state, settings))
    answer: tuple[float, float] | None = None
    while True:
        try:
            step = next(search) if answer is None else search.send(answer)
        except StopIteration as done:
            trial = done.value
            break
        value, slope_there, largest, squared = yield from _try(state, settings, step)
        answer = value, slope_there
    if trial is not None:
        is_seen = state.loss - trial.value > _resolution(state, settings)
        state.stalled = 0 if is_seen else state.stalled + 1
        state.loss, state.step_length = trial.value, trial.step
        state.largest, state.squared_norm = largest, squared
        yield from _move(state, settings)
    return trial, predicted


def _try(
    state: State, settings: Settings, step: float
) -> Generator[Request, Answer, tuple[float, float, float, float]]:
    """Return value, slope, and the gradient's largest component and squared norm at a step."""
    before = (Combine(TRIAL, {X: 1.0, DIRECTION: step}),)
    after = (
        Add(TRIAL_GRADIENT, settings.l2, TRIAL),
        Dot(TRIAL, TRIAL),
        Dot(TRIAL_GRADIENT, DIRECTION),
        Largest(TRIAL_GRADIENT),
        Dot(TRIAL_GRADIENT, TRIAL_GRADIENT),
    )
    loss, answers = yield Evaluate(before, TRIAL, TRIAL_GRADIENT, after)
    state.evaluations += 1
    _, norm, slope, largest, squared = answers
    return loss + 0.5 * settings.l2 * norm, slope, largest, squared


def _move(state: State, settings: Settings) -> Generator[Request, Answer, None]:
    """Make the trial the point, and its step and change of gradient the newest pair."""
    slot = _free_slot(state, settings.history_length)
    s, y = f"s{slot}", f"y{slot}"
    kept = [f"{letter}{k}" for letter in "sy" for k in state.pairs if k != slot]
    rows, columns = (s, y, GRADIENT), (s, y, GRADIENT, *kept)
    answers = yield Round(
        (
            Combine(s, {TRIAL: 1.0, X: -1.0}),
            Combine(y, {TRIAL_GRADIENT: 1.0, GRADIENT: -1.0}),
            Copy(X, TRIAL),
            Copy(GRADIENT, TRIAL_GRADIENT),
            Gram(rows, columns),
        )
    )
    state.keep(rows, columns, answers[-1])
    state.pairs = [k for k in state.pairs if k != slot]
    length = math.sqrt(state.product(s, s) * state.product(y, y))
    if state.product(s, y) > LEAST_CURVATURE * length:
        state.pairs.append(slot)
    state.iteration += 1
    _forget_products(state)


def _free_slot(state: State, history_length: int) -> int:
    """Return the slot for the next pair: a free one, else that of the oldest."""
    free = [slot for slot in range(history_length) if slot not in state.pairs]
    return free[0] if free else state.pairs[0]


def _forget_products(state: State) -> None:
    """Drop the products of vectors that are no longer used."""
    alive = {GRADIENT, *(f"{letter}{slot}" for slot in state.pairs for letter in "sy")}
    state.products = {key: v for key, v in state.products.items() if set(key.split()) <= alive}


def direction_coefficients(state: State) -> dict[str, float]:
    """Return the direction as coefficients of the gradient, of every s and of every y.

    This is the two-loop recursion on scalars.
    """
    basis = [f"{letter}{slot}" for letter in "sy" for slot in state.pairs] + [GRADIENT]
    c = dict.fromkeys(basis, 0.0)
    c[GRADIENT] = -1.0

    def against(name: str) -> float:
        return sum(factor * state.product(name, other) for other, factor in c.items() if factor)

    alpha = {}
    for slot in reversed(state.pairs):
        s, y = f"s{slot}", f"y{slot}"
        alpha[slot] = against(s) / state.product(s, y)
        c[y] -= alpha[slot]
    if state.pairs:
        s, y = f"s{state.pairs[-1]}", f"y{state.pairs[-1]}"
        gamma = state.product(s, y) / state.product(y, y)
        c = {name: gamma * factor for name, factor in c.items()}
    for slot in state.pairs:
        s, y = f"s{slot}", f"y{slot}"
        beta = against(y) / state.product(s, y)
        c[s] += alpha[slot] - beta
    return c


def _resolution(state: State, settings: Settings) -> float:
    """Return the smallest decrease of the loss that exceeds its rounding."""
    return settings.epsilon * abs(state.loss)
