"""Vectors that a replica pushes: accrued gradients, or the displacement of its own steps.

Both follow the same order: `add` after each minibatch, `take` for a push, `leaving` and `arrived`
around each installation of fetched parameters.
"""

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.optim.optimizer_checks import initial_slots, prepared_update
from dbdask.optim.optimizers import Optimizer
from dbdask.users_code import UsersCode


class Buffers(Protocol):
    """A pool of float32 vectors."""

    def buffer(self, size: int) -> Float32Array:
        """Take a vector, float32 (size,), out of the pool; its content is arbitrary."""

    def give_back(self, *vectors: Float32Array) -> None:
        """Return vectors, float32 (size,), to the pool."""


class Accrual(Protocol):
    """Adds up, since the last push, the vector that a replica pushes next.

    Attributes
    ----------
    steps
        Minibatches that have been added since the last push.
    """

    steps: int

    def add(self, local: Float32Array, gradient: Float32Array) -> None:
        """Count a minibatch's mean gradient, and step the replica's own copy.

        Both are float32 (parameters,); `local` is changed in place.
        """

    def take(self, local: Float32Array) -> Float32Array:
        """Return the vector to push, float32 (parameters,), and begin again from zero.

        The vector goes back by `pushed` when the push has ended.
        """

    def leaving(self, local: Float32Array) -> None:
        """Note that fetched parameters are about to overwrite `local`, float32 (parameters,)."""

    def arrived(self, local: Float32Array) -> None:
        """Note that `local`, float32 (parameters,), holds fetched parameters."""

    def pushed(self, vector: Float32Array) -> None:
        """Return a pushed vector, float32 (parameters,), to the pool if it is free again."""

    def release(self) -> None:
        """Return the vectors to the pool."""


class AccruedGradients:
    """The sum of the gradients since the last push (Algorithm 1.1).

    Parameters
    ----------
    buffers
        Gives vectors.
    gradient
        The replica's gradient: the vector pushed if every minibatch is pushed by itself.
    every_step
        Whether every minibatch is pushed by itself.
    local_rate
        Rate of the replica's own steps between two fetches; 0 makes none.
    """

    def __init__(
        self, buffers: Buffers, gradient: Float32Array, *, every_step: bool, local_rate: float
    ) -> None:
        self._buffers, self._gradient = buffers, gradient
        self._rate = np.float32(local_rate)
        self._sum = gradient if every_step else buffers.buffer(gradient.size)
        self.steps = 0

    def add(self, local: Float32Array, gradient: Float32Array) -> None:
        """Add a gradient to the sum, and step the local copy: both float32 (parameters,)."""
        if self._rate:
            local -= self._rate * gradient
        if self._sum is not gradient:
            if self.steps == 0:
                np.copyto(self._sum, gradient)
            else:
                self._sum += gradient
        self.steps += 1

    def take(self, local: Float32Array) -> Float32Array:
        """Return the sum of the gradients, float32 (parameters,), and begin another one.

        The next sum is another vector, because the push of this one is still under way.
        """
        taken, self.steps = self._sum, 0
        if taken is not self._gradient:
            self._sum = self._buffers.buffer(taken.size)
        return taken

    def leaving(self, local: Float32Array) -> None:
        """Do nothing: the gradients are not in `local`, float32 (parameters,), so none is lost."""

    def arrived(self, local: Float32Array) -> None:
        """Do nothing: `local`, float32 (parameters,), is stepped like any other parameters."""

    def pushed(self, vector: Float32Array) -> None:
        """Return a pushed sum, float32 (parameters,), to the pool, unless it is the gradient."""
        if vector is not self._gradient:
            self._buffers.give_back(vector)

    def release(self) -> None:
        """Return the sum to the pool."""
        self.pushed(self._sum)


class LocalRule:
    """A replica's own update rule with its state, which lasts from one portion to the next.

    Parameters
    ----------
    optimizer
        The rule; each replica works with a copy.
    size
        Elements of the flat vector.
    trained
        Its ranges that are trained.
    """

    def __init__(self, optimizer: Optimizer, size: int, trained: Sequence[tuple[int, int]]) -> None:
        with UsersCode("local_optimizer"):
            self._optimizer = copy.deepcopy(optimizer)
            self._slots = initial_slots(self._optimizer, size)
        self._trained = [slice(start, stop) for start, stop in trained]
        self._step = 0

    def update(self, parameters: Float32Array, gradient: Float32Array) -> None:
        """Apply one update in place: float32 vectors of shape (size,)."""
        with UsersCode("local_optimizer"):
            self._apply(parameters, gradient)
        self._step += 1

    def _apply(self, parameters: Float32Array, gradient: Float32Array) -> None:
        update = prepared_update(self._optimizer, self._step)
        for part in self._trained:
            slots = {name: vector[part] for name, vector in self._slots.items()}
            update(parameters[part], gradient[part], slots)


class Displacement:
    """The parameters that were fetched minus where the replica's own steps have led.

    A shard that applies plain descent with rate 1 to it takes over the steps of a lone replica.
    With momentum it is the outer step of DiLoCo (Douillard et al. 2023), without waiting for
    other replicas.

    Parameters
    ----------
    buffers
        Gives vectors.
    size
        Elements of the flat vector.
    rule
        Makes the replica's own steps.
    """

    def __init__(self, buffers: Buffers, size: int, rule: LocalRule) -> None:
        self._buffers, self._rule = buffers, rule
        self._anchor = buffers.buffer(size)
        self._carried: Float32Array | None = None
        self.steps = 0

    def add(self, local: Float32Array, gradient: Float32Array) -> None:
        """Step the local copy by a gradient: both float32 (parameters,)."""
        self._rule.update(local, gradient)
        self.steps += 1

    def take(self, local: Float32Array) -> Float32Array:
        """Return the displacement since the last push: float32, (size,)."""
        self.leaving(local)
        taken, self._carried, self.steps = self._carried, None, 0
        assert taken is not None, "a push follows at least one step"
        np.copyto(self._anchor, local)
        return taken

    def leaving(self, local: Float32Array) -> None:
        """Add up the change of `local`, float32 (parameters,), since the last fetch."""
        if self.steps == 0:
            return
        if self._carried is None:
            self._carried = self._buffers.buffer(local.size)
            np.subtract(self._anchor, local, out=self._carried)
        else:
            self._carried += self._anchor
            self._carried -= local

    def arrived(self, local: Float32Array) -> None:
        """Count the displacement from `local`, float32 (parameters,), from now on."""
        np.copyto(self._anchor, local)

    def pushed(self, vector: Float32Array) -> None:
        """Return a pushed displacement, float32 (parameters,), to the pool."""
        self._buffers.give_back(vector)

    def release(self) -> None:
        """Return the vectors to the pool."""
        carried = [] if self._carried is None else [self._carried]
        self._buffers.give_back(self._anchor, *carried)
