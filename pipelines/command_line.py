"""What the programs' command lines share: the cluster, the optimiser, and how they speak."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

import dbdask
from dbdask.optim.optimizers import Optimizer
from pipelines.schedules import Falling

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


def optimizer(text: str, *, weight_decay: float = 0.0, steps: int | None = None) -> Optimizer:
    """Return the optimiser of `--optimizer`, NAME:RATE; with `steps` its rate falls in so many."""
    name, _, rate = text.partition(":")
    if name not in OPTIMIZERS:
        raise SystemExit(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    number = float(rate or 0.03)
    given = number if steps is None else Falling(number, steps)
    found: Optimizer = OPTIMIZERS[name](given, weight_decay=weight_decay)
    return found


@contextmanager
def cluster(address: str | None, workers: int = 2) -> Iterator[Client]:
    """Yield a client of the given scheduler, or of so many processes of this machine."""
    if address is not None:
        with Client(address) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        yield client


def say(text: str) -> None:
    """Tell the person who runs the program."""
    print(text, flush=True)
