"""Batch methods on NumPy arrays, by the generator that a parameter server runs, too."""

from collections.abc import Callable

import numpy as np

from dbdask.arrays import FloatArray
from dbdask.optim.lbfgs import Accepted, Answer, Evaluate, Round, Settings, State, minimise
from dbdask.optim.vectors import Vectors, carry_out

Objective = Callable[[FloatArray], tuple[float, FloatArray]]


def minimise_array(
    objective: Objective,
    start: FloatArray,
    settings: Settings | None = None,
) -> tuple[FloatArray, State, str]:
    """Minimise a function of one array; return the point, the state, and why it stopped.

    Parameters
    ----------
    objective
        Returns the value and the gradient at a point, (n,).
    start
        The first point, float of (n,); its dtype is that of all vectors.
    settings
        None: the defaults, with the precision of `start`.

    Examples
    --------
    >>> point, state, reason = minimise_array(lambda x: (x @ x, 2 * x), np.array([3.0, -4.0]))
    >>> bool(np.abs(point).max() < 1e-5), reason
    (True, 'tolerance')
    """
    settings = settings or Settings(epsilon=float(np.finfo(start.dtype).eps))
    state = State()
    vectors: Vectors = {"parameters": np.array(start)}
    method = minimise(state, settings)
    answer: Answer = None
    while True:
        try:
            request = method.send(answer)
        except StopIteration as done:
            return vectors["parameters"], state, done.value
        if isinstance(request, Round):
            answer = carry_out(request.commands, vectors)
        elif isinstance(request, Evaluate):
            carry_out(request.before, vectors)
            value, vectors[request.into] = objective(vectors[request.point])
            answer = value, carry_out(request.after, vectors)
        else:
            assert isinstance(request, Accepted)
            answer = False  # continue: True would stop the method
