"""Random numbers of a module from a seed, in a process whose threads share torch's generators."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_lock = threading.RLock()
"""Held while torch's generators are seeded for the forward pass of one thread."""


class SeededForward:
    """Runs the forward passes of one module, whose random numbers then depend on the seed alone.

    Torch has one generator for each device and process. While a pass draws from it no other pass
    may, so such passes take turns in a process. Their backward passes draw nothing, and overlap. A
    module that drew nothing in its first pass takes no turns. If a later pass of it moves the
    generator all the same, that pass is made again in its turn.

    Parameters
    ----------
    device
        Where the module is. On another device than the CPU every pass takes its turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._may_draw = True  # not known before the first pass
        self._is_first = device.type == "cpu"

    def __call__(self, forward: Callable[[], T], seed: int) -> T:
        """Return the result of `forward`, which may be called twice and must begin anew each time.

        Parameters
        ----------
        forward
            The pass.
        seed
            At least 0.
        """
        if not self._may_draw:
            before = torch.get_rng_state()
            found = forward()
            if torch.equal(before, torch.get_rng_state()):
                return found
            self._may_draw = True
        with _seeded(seed, self._device):
            before = torch.get_rng_state()
            found = forward()
            if self._is_first:
                self._is_first = False
                self._may_draw = not torch.equal(before, torch.get_rng_state())
            return found


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a while, and then put them back as they were."""
    on_cuda = device.type == "cuda"
    with _lock:
        before = torch.get_rng_state()
        there = torch.cuda.get_rng_state(device) if on_cuda else None
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before)
            if there is not None:
                torch.cuda.set_rng_state(there, device)
