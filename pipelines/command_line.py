"""What the programs' command lines share: the cluster, the optimiser, and how they speak."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from distributed import Client, LocalCluster

import dbdask
from dbdask.optim.optimizers import Optimizer

OPTIMIZERS = {
    "sgd": dbdask.sgd,
    "momentum": dbdask.momentum,
    "adagrad": dbdask.adagrad,
    "adam": dbdask.adam,
}


def hidden_layers(text: str) -> list[int]:
    """Return the units of each hidden layer of `--layers`.

    Examples
    --------
    >>> hidden_layers("2x256")
    [256, 256]
    """
    count, _, units = text.partition("x")
    if not (count.isdigit() and units.isdigit()):
        raise SystemExit(f"--layers must be COUNTxUNITS such as 2x256, got {text!r}")
    return [int(units)] * int(count)


@dataclass(frozen=True)
class FallingRate:
    """A learning rate that falls in a line from `rate` to a hundredth of it in `steps` updates.

    Examples
    --------
    >>> rate = FallingRate(0.5, 100)
    >>> rate(0), rate(50), rate(100), rate(200)
    (0.5, 0.25, 0.005, 0.005)
    """

    rate: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the rate of an update, of which the first is 0."""
        return self.rate * max(1 - step / self.steps, 0.01)


def optimizer(text: str, *, weight_decay: float = 0.0, steps: int | None = None) -> Optimizer:
    """Return the optimiser of `--optimizer`; with `steps` its rate falls in as many updates."""
    name, _, rate = text.partition(":")
    if name not in OPTIMIZERS:
        raise SystemExit(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    number = float(rate or 0.03)
    given = number if steps is None else FallingRate(number, steps)
    found: Optimizer = OPTIMIZERS[name](given, weight_decay=weight_decay)
    return found


@contextmanager
def cluster(address: str | None) -> Iterator[Client]:
    """Yield a client of the given scheduler, or of two processes of this machine."""
    if address is not None:
        with Client(address) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        yield client


def say(text: str) -> None:
    """Tell the person who runs the program."""
    print(text, flush=True)
