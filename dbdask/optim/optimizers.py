"""Update rules: how a parameter shard applies a gradient.

A rule is any object with `slots` and `update` (see `Optimizer`). The rules here work in blocks that
stay in the processor's cache, and element by element, so that a slice gets the same bits as in
the whole vector.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject

BLOCK = 65_536  # floats: with its slots a block stays in the cache, and each costs ten calls

Rate = float | Callable[[int], float]
Slots = dict[str, Float32Array]


@runtime_checkable
class Optimizer(Protocol):
    """The members that a parameter shard needs of an update rule; an object with them is one.

    A rule travels pickled, and every shard has a copy of its own, which one thread at a time
    calls with the shard's slice of the vectors. A rule must work on any slice. All that it
    remembers from one update to the next belongs into the slots: checkpoints keep slots, and of
    the object only the name of its class.

    Optional: `initial_slot(name, size)` returns a slot's first content, float32 of shape
    (size,); without it slots start as zeros.

    Attributes
    ----------
    slots
        Names of the vectors that the rule keeps beside the parameters.

    Examples
    --------
    >>> class SignDescent:
    ...     slots = ()
    ...     def update(self, parameters, gradient, slots, step):
    ...         parameters -= np.float32(0.01) * np.sign(gradient)
    >>> isinstance(SignDescent(), Optimizer)
    True
    """

    @property
    def slots(self) -> Sequence[str]: ...

    def update(
        self, parameters: Float32Array, gradient: Float32Array, slots: Slots, step: int
    ) -> None:
        """Apply one update in place; the gradient is read-only.

        Code that can fail (a schedule, a check) must come before the first change, because an
        update that raises counts as not applied.

        Parameters
        ----------
        parameters, gradient
            Slices of the flat vectors, float32 of shape (n,).
        slots
            The rule's own vectors by name, float32 of shape (n,) each, updated in place.
        step
            Updates that this shard applied before this one, from 0.
        """
        ...


@dataclass(frozen=True)
class UpdateRule:
    """A rule with a learning rate, applied block by block.

    A subclass gives `name` and `slots`, declares its numbers as fields, and writes its equation
    in `_update_block`.

    Attributes
    ----------
    learning_rate
        A number, or a `schedule(step) -> float`; steps count from 0 in every shard.
    weight_decay
        Times the parameters, added to the gradient.
    """

    name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ()

    learning_rate: Rate
    weight_decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            _check("learning_rate", self.learning_rate, above=0.0)
        self._set_number("weight_decay", least=0.0)

    def _set_number(self, name: str, **limits: float) -> None:
        """Check a field that holds a number, and keep it as a float."""
        value = getattr(self, name)
        _check(name, value, **limits)
        object.__setattr__(self, name, float(value))

    def initial_slot(self, name: str, size: int) -> Float32Array:
        """Return a slot's first content: float32, (size,)."""
        return np.zeros(size, np.float32)

    def rate(self, step: int) -> float:
        """Return the learning rate of an update.

        Raises
        ------
        TypeError, ValueError
            A schedule returned no number, or a rate that is negative or not finite.
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
        self, parameters: Float32Array, gradient: Float32Array, slots: Slots, step: int
    ) -> None:
        """Apply one update in place (see `Optimizer.update`).

        `parameters`, `gradient` and each slot are float32 (n,).
        """
        self.apply(parameters, gradient, slots, step, self.rate(step))

    def apply(
        self, parameters: Float32Array, gradient: Float32Array, slots: Slots, step: int, rate: float
    ) -> None:
        """Apply one update at a known rate, which cannot fail half way.

        All vectors are float32 of one shape, (n,); the gradient is only read.
        """
        held = [slots[name] for name in self.slots]
        shapes = {vector.shape for vector in (parameters, gradient, *held)}
        assert len(shapes) == 1, shapes
        scratch = np.empty((2, min(BLOCK, parameters.size)), parameters.dtype)
        for start in range(0, parameters.size, BLOCK):
            block = slice(start, min(start + BLOCK, parameters.size))
            p, g, spare = parameters[block], gradient[block], scratch[:, : block.stop - start]
            if self.weight_decay:
                np.multiply(p, self.weight_decay, out=spare[0])
                spare[0] += g
                g = spare[0]
            self._update_block(p, g, [vector[block] for vector in held], rate, step, spare[1])

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        """Update a block in place; `spare` has its shape, and content that may be overwritten."""
        raise NotImplementedError

    def description(self) -> JsonObject:
        """Return the rule as JSON, with only the name of a schedule."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        rate = self.learning_rate
        values["learning_rate"] = _schedule_name(rate) if callable(rate) else float(rate)
        return {"name": self.name, **values}


def _schedule_name(schedule: Callable[[int], float]) -> str:
    """Return the name of a schedule, without its address, so that all processes agree on it."""
    return getattr(schedule, "__qualname__", type(schedule).__qualname__)


def _check(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if above is not None and not (math.isfinite(value) and value > above):
        raise ValueError(f"{name} must be above {above:g}, got {value}")
    if least is not None and not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} must be at least {least:g}, got {value}")
    if below is not None and not value < below:
        raise ValueError(f"{name} must be below {below:g}, got {value}")


@dataclass(frozen=True)
class Sgd(UpdateRule):
    """Gradient descent: `parameters -= rate * gradient`.

    Examples
    --------
    >>> parameters = np.array([1.0, 2.0], np.float32)
    >>> Sgd(0.5).update(parameters, np.array([1.0, -1.0], np.float32), {}, step=0)
    >>> parameters.tolist()
    [0.5, 2.5]
    """

    name = "sgd"

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        np.multiply(gradient, rate, out=spare)
        parameters -= spare


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """Momentum: `v = momentum * v + gradient; parameters -= rate * v`.

    With `nesterov` it is the rule `nesterov`. Source: Polyak 1964; Sutskever et al. 2013.
    """

    name = "momentum"
    slots = ("velocity",)

    momentum: float = field(default=0.9, kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("momentum", least=0.0, below=1.0)
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov must be True or False, got {self.nesterov!r}")

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        (velocity,) = slots
        if self.nesterov:
            _look_ahead(parameters, gradient, velocity, self.momentum, rate, spare)
            return
        velocity *= self.momentum
        velocity += gradient
        np.multiply(velocity, rate, out=spare)
        parameters -= spare


@dataclass(frozen=True)
class Nesterov(UpdateRule):
    """Nesterov momentum: momentum that looks one step ahead.

    `v = momentum * v + gradient; parameters -= rate * (gradient + momentum * v)`. At a constant
    rate this is Nesterov's accelerated gradient, which takes each gradient at the point where the
    velocity is about to lead; the parameters here are those points. Source: Nesterov 1983;
    Sutskever et al. 2013, equations 3 and 4, with the variables of Bengio et al. 2013, equation 7.
    """

    name = "nesterov"
    slots = ("velocity",)

    momentum: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("momentum", least=0.0, below=1.0)

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        (velocity,) = slots
        _look_ahead(parameters, gradient, velocity, self.momentum, rate, spare)


def _look_ahead(
    parameters: Float32Array,
    gradient: Float32Array,
    velocity: Float32Array,
    momentum: float,
    rate: float,
    spare: Float32Array,
) -> None:
    """Apply Nesterov's update to `velocity` and `parameters`; `spare` is overwritten.

    All vectors are float32 of one shape.
    """
    velocity *= momentum
    velocity += gradient
    np.multiply(velocity, momentum, out=spare)
    spare += gradient
    spare *= rate
    parameters -= spare


@dataclass(frozen=True)
class Adagrad(UpdateRule):
    """Adagrad as in the paper: `a += gradient**2; parameters -= rate * gradient / sqrt(a)`.

    `epsilon` is added to the root, and every sum of squares starts at `initial_accumulator`. With
    the default, zero, as in the paper, the first step of every parameter is `rate` long. Source:
    Duchi, Hazan, Singer 2011; Dean et al. 2012, section 4.1.
    """

    name = "adagrad"
    slots = ("accumulator",)

    epsilon: float = field(default=1e-7, kw_only=True)
    initial_accumulator: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("epsilon", above=0.0)
        self._set_number("initial_accumulator", least=0.0)

    def initial_slot(self, name: str, size: int) -> Float32Array:
        """Return the first sums of squares: float32, (size,)."""
        return np.full(size, self.initial_accumulator, np.float32)

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        (accumulator,) = slots
        np.multiply(gradient, gradient, out=spare)
        accumulator += spare
        np.sqrt(accumulator, out=spare)
        spare += self.epsilon
        np.divide(gradient, spare, out=spare)
        spare *= rate
        parameters -= spare


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam with bias correction; `weight_decay` is added to the gradient, not decoupled from it.

    `m = beta1 * m + (1 - beta1) * gradient; v = beta2 * v + (1 - beta2) * gradient**2;
    parameters -= rate * m' / (sqrt(v') + epsilon)`, where `m' = m / (1 - beta1**t)`,
    `v' = v / (1 - beta2**t)` and `t` counts from 1. Source: Kingma and Ba 2015, algorithm 1.
    """

    name = "adam"
    slots = ("mean", "square")

    beta1: float = field(default=0.9, kw_only=True)
    beta2: float = field(default=0.999, kw_only=True)
    epsilon: float = field(default=1e-8, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("beta1", least=0.0, below=1.0)
        self._set_number("beta2", least=0.0, below=1.0)
        self._set_number("epsilon", above=0.0)

    def _update_block(
        self,
        parameters: Float32Array,
        gradient: Float32Array,
        slots: list[Float32Array],
        rate: float,
        step: int,
        spare: Float32Array,
    ) -> None:
        mean, square = slots
        np.multiply(gradient, 1 - self.beta1, out=spare)
        mean *= self.beta1
        mean += spare
        np.multiply(gradient, gradient, out=spare)
        spare *= 1 - self.beta2
        square *= self.beta2
        square += spare
        np.divide(square, 1 - self.beta2 ** (step + 1), out=spare)
        np.sqrt(spare, out=spare)
        spare += self.epsilon
        np.divide(mean, spare, out=spare)
        spare *= rate / (1 - self.beta1 ** (step + 1))
        parameters -= spare


# Users write dbdask.sgd(0.1): the names that the field uses.
sgd, momentum, nesterov, adagrad, adam = Sgd, Momentum, Nesterov, Adagrad, Adam

RULES = {rule.name: rule for rule in (Sgd, Momentum, Nesterov, Adagrad, Adam)}
"""The rules of this library, by the names under which checkpoints know them."""


def is_own(optimizer: Optimizer) -> bool:
    """Whether a user wrote the rule, also as a subclass of one of these."""
    return type(optimizer) not in RULES.values()
