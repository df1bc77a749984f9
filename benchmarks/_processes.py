"""Functions in processes of their own, which begin together and count until their time is over."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

FIRST_STEPS = 3
"""Steps before the clock starts: imports, first touches of memory, caches."""

_barrier: Barrier | None = None


def _prepare(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def wait_for_the_others() -> None:
    """Wait until every process that was started together is here."""
    if _barrier is not None:
        _barrier.wait()


def _call(function: Callable[..., Any], *given: Any) -> Any:
    """Call the function; if it fails, let the processes that wait for this one fail, too."""
    try:
        return function(*given)
    except BaseException:
        if _barrier is not None:
            _barrier.abort()
        raise


def together(function: Callable[..., Any], count: int, *given: Any) -> list[Any]:
    """Call a function in so many new processes at once; each gets its number first.

    Returns
    -------
    The results, in the order of the numbers.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_prepare, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_call, function, number, *given) for number in range(count)]
        return [future.result() for future in futures]


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """Return the result of a function in a process of its own; it gets the number 0 first."""
    return together(function, 1, *given)[0]


def examples_a_second(step: Callable[[], int], seconds: float) -> float:
    """Return how many examples a second a step trains that returns its number of examples."""
    for _ in range(FIRST_STEPS):
        step()
    wait_for_the_others()
    count, steps, began = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or steps < 2:
        count += step()
        steps += 1
    return count / passed


def examples_a_second_in_step(
    step: Callable[[], int], seconds: float, agree: Callable[[int], int]
) -> float:
    """As `examples_a_second`, in processes that must all make the same number of steps.

    `agree` is given a number of steps by every process, and returns the one that counts.
    """
    for _ in range(FIRST_STEPS):
        step()
    began = time.perf_counter()
    for _ in range(FIRST_STEPS):
        step()
    steps = max(2, agree(int(FIRST_STEPS * seconds / (time.perf_counter() - began))))
    wait_for_the_others()
    began = time.perf_counter()
    count = sum(step() for _ in range(steps))
    return count / (time.perf_counter() - began)
