"""Update rules: what a parameter shard does with a gradient.

Each rule works in blocks that stay in the processor's cache, and element by element: a slice
gets the same bits as the whole vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK = 32_768  # floats

Rate = float | Callable[[int], float]
Rule = Callable[..., None]


@dataclass(frozen=True)
class Optimizer:
    """An update rule with its numbers; made by `sgd`, `momentum`, `adagrad` or `adam`.

    Attributes
    ----------
    name
        The rule.
    learning_rate
        A number, or a `schedule(step) -> float`; steps count from 0 in every shard.
    weight_decay
        Times the parameters, added to the gradient.
    numbers
        The rule's other numbers.
    """

    name: str
    learning_rate: Rate
    weight_decay: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            _check("learning_rate", self.learning_rate, above=0.0)
        _check("weight_decay", self.weight_decay, least=0.0)
        object.__setattr__(self, "weight_decay", float(self.weight_decay))

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the vectors that the rule keeps beside the parameters."""
        return _SLOTS[self.name]

    def initial_slot(self, name: str, size: int) -> np.ndarray:
        """Return a slot's first content, float32 of `size` elements."""
        start = self.numbers.get("initial_accumulator", 0.0) if name == "accumulator" else 0.0
        return np.full(size, start, np.float32)

    def rate(self, step: int) -> float:
        """Return the learning rate of an update.

        Raises
        ------
        ValueError
            A schedule returned a rate that is negative or not finite.
        """
        if not callable(self.learning_rate):
            return float(self.learning_rate)
        given = self.learning_rate(step)
        try:
            rate = float(given)
        except (TypeError, ValueError) as error:
            raise TypeError(f"learning_rate({step}) must be a number, got {given!r}") from error
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"learning_rate({step}) must be finite and at least 0, got {rate}")
        return rate

    def update(
        self,
        parameters: np.ndarray,
        gradient: np.ndarray,
        slots: dict[str, np.ndarray],
        step: int,
    ) -> None:
        """Apply one update in place; the gradient is left as it is.

        Parameters
        ----------
        parameters, gradient
            Slices of the flat vectors, shape (n,).
        slots
            The rule's own vectors, shape (n,) each, updated in place.
        step
            Updates applied before this one.
        """
        assert parameters.shape == gradient.shape, (parameters.shape, gradient.shape)
        rule, rate = _RULES[self.name], self.rate(step)
        scratch = np.empty((2, min(BLOCK, parameters.size)), parameters.dtype)
        for start in range(0, parameters.size, BLOCK):
            block = slice(start, min(start + BLOCK, parameters.size))
            length = block.stop - start
            g, spare = gradient[block], scratch[:, :length]
            if self.weight_decay:
                np.multiply(parameters[block], self.weight_decay, out=spare[0])
                spare[0] += g
                g = spare[0]
            rule(
                parameters[block],
                g,
                [slots[name][block] for name in self.slots],
                rate,
                step,
                spare,
                **self.numbers,
            )

    def description(self) -> dict[str, Any]:
        """Return the rule as JSON; a schedule is named, not kept."""
        rate = self.learning_rate
        return {
            "name": self.name,
            "learning_rate": _schedule_name(rate) if callable(rate) else float(rate),
            "weight_decay": self.weight_decay,
            **self.numbers,
        }


def _schedule_name(schedule: Callable[[int], float]) -> str:
    """Name a schedule without its address, so that a second process names it alike."""
    return getattr(schedule, "__qualname__", type(schedule).__qualname__)


def _check(
    name: str, value: Any, *, above: float | None = None, least: float | None = None
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if above is not None and not (math.isfinite(value) and value > above):
        raise ValueError(f"{name} must be above {above:g}, got {value}")
    if least is not None and not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} must be at least {least:g}, got {value}")


def _check_fraction(name: str, value: Any) -> None:
    _check(name, value, least=0.0)
    if value >= 1:
        raise ValueError(f"{name} must be below 1, got {value}")


def sgd(learning_rate: Rate, *, weight_decay: float = 0.0) -> Optimizer:
    """Gradient descent: `parameters -= rate * gradient`.

    Examples
    --------
    >>> parameters = np.array([1.0, 2.0], np.float32)
    >>> sgd(0.5).update(parameters, np.array([1.0, -1.0], np.float32), {}, step=0)
    >>> parameters.tolist()
    [0.5, 2.5]
    """
    return Optimizer("sgd", learning_rate, weight_decay)


def momentum(
    learning_rate: Rate,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Momentum: `v = momentum * v + gradient; parameters -= rate * v`.

    With `nesterov` the step is `rate * (gradient + momentum * v)`. Source: Sutskever et al. 2013.
    """
    _check_fraction("momentum", momentum)
    if not isinstance(nesterov, bool):
        raise TypeError(f"nesterov must be True or False, got {nesterov!r}")
    numbers = {"momentum": float(momentum), "nesterov": bool(nesterov)}
    return Optimizer("momentum", learning_rate, weight_decay, numbers)


def adagrad(
    learning_rate: Rate,
    *,
    epsilon: float = 1e-7,
    initial_accumulator: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adagrad as the paper has it: `a += gradient**2; parameters -= rate * gradient / sqrt(a)`.

    `epsilon` is added to the root, and `initial_accumulator` is where every sum of squares
    starts. With the default, zero, as in the paper, the first step of every parameter is `rate`
    long. Source: Duchi, Hazan, Singer 2011; Dean et al. 2012, section 4.1.
    """
    _check("epsilon", epsilon, above=0.0)
    _check("initial_accumulator", initial_accumulator, least=0.0)
    numbers = {"epsilon": float(epsilon), "initial_accumulator": float(initial_accumulator)}
    return Optimizer("adagrad", learning_rate, weight_decay, numbers)


def adam(
    learning_rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam with bias correction; `weight_decay` is added to the gradient, not decoupled from it.

    `m = beta1 * m + (1 - beta1) * gradient; v = beta2 * v + (1 - beta2) * gradient**2;
    parameters -= rate * m' / (sqrt(v') + epsilon)`, where `m' = m / (1 - beta1**t)`,
    `v' = v / (1 - beta2**t)` and `t` counts from 1. Source: Kingma and Ba 2015, algorithm 1.
    """
    _check_fraction("beta1", beta1)
    _check_fraction("beta2", beta2)
    _check("epsilon", epsilon, above=0.0)
    numbers = {"beta1": float(beta1), "beta2": float(beta2), "epsilon": float(epsilon)}
    return Optimizer("adam", learning_rate, weight_decay, numbers)


def _sgd(
    parameters: np.ndarray,
    gradient: np.ndarray,
    slots: list[np.ndarray],
    rate: float,
    step: int,
    spare: np.ndarray,
) -> None:
    np.multiply(gradient, rate, out=spare[1])
    parameters -= spare[1]


def _momentum(
    parameters: np.ndarray,
    gradient: np.ndarray,
    slots: list[np.ndarray],
    rate: float,
    step: int,
    spare: np.ndarray,
    *,
    momentum: float,
    nesterov: bool,
) -> None:
    (velocity,) = slots
    velocity *= momentum
    velocity += gradient
    if nesterov:
        np.multiply(velocity, momentum, out=spare[1])
        spare[1] += gradient
        spare[1] *= rate
    else:
        np.multiply(velocity, rate, out=spare[1])
    parameters -= spare[1]


def _adagrad(
    parameters: np.ndarray,
    gradient: np.ndarray,
    slots: list[np.ndarray],
    rate: float,
    step: int,
    spare: np.ndarray,
    *,
    epsilon: float,
    initial_accumulator: float,
) -> None:
    (accumulator,) = slots
    np.multiply(gradient, gradient, out=spare[1])
    accumulator += spare[1]
    np.sqrt(accumulator, out=spare[1])
    spare[1] += epsilon
    np.divide(gradient, spare[1], out=spare[1])
    spare[1] *= rate
    parameters -= spare[1]


def _adam(
    parameters: np.ndarray,
    gradient: np.ndarray,
    slots: list[np.ndarray],
    rate: float,
    step: int,
    spare: np.ndarray,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    mean, square = slots
    np.multiply(gradient, 1 - beta1, out=spare[1])
    mean *= beta1
    mean += spare[1]
    np.multiply(gradient, gradient, out=spare[1])
    spare[1] *= 1 - beta2
    square *= beta2
    square += spare[1]
    np.divide(square, 1 - beta2 ** (step + 1), out=spare[1])
    np.sqrt(spare[1], out=spare[1])
    spare[1] += epsilon
    np.divide(mean, spare[1], out=spare[1])
    spare[1] *= rate / (1 - beta1 ** (step + 1))
    parameters -= spare[1]


_RULES: dict[str, Rule] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "adam": _adam,
}
_SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adagrad": ("accumulator",),
    "adam": ("mean", "square"),
}
