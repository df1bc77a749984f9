"""Examples a second with a push for every minibatch: dbdask beside what one would take instead.

    python -m benchmarks.peers_throughput [--nets small medium paper] [--rounds 5] [--seconds 3]

The same net, the same examples, minibatches of one size and Adagrad for all, on two cores:

- `limit`: two processes of one thread that only compute and update, each for itself;
- `dbdask`: Downpour with `n_fetch = n_push = 1` from a Zarr store, after its first epoch, over
  whole epochs, with workers that are processes or threads of one process;
- `numpy`: dbdask's own arithmetic in a loop in one process, without shards;
- `torch`: a plain loop of PyTorch in one process, with fused Adagrad;
- `ddp`: DistributedDataParallel on gloo, two processes of one thread;
- `ray`: actors on Ray as parameter servers, two workers of one thread.

The examples of all but dbdask are arrays in memory. Each process or replica has minibatches of the
full size. Ratios of the table are a round's rate over that of the round's `limit`; below it stand
the ratios that dbdask is judged by, with the values that are wanted.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._loops import ddp_rate, limit_rate, numpy_rate, torch_rate
from benchmarks._nets import COMPARED, NETS, RATE, examples_of
from benchmarks._ratios import Pair
from benchmarks._ray_server import ray_rate
from benchmarks._side_by_side import Contestant, Report, parser

LIMIT = "limit, 2 processes"
TWO, ONE = "dbdask, processes, 2 replicas", "dbdask, processes, 1 replica"
OURS = (
    TWO,
    ONE,
    "dbdask, threads, 2 replicas",
    "dbdask, threads, 1 replica",
    "dbdask, threads, 1 replica of 2 threads",
    "dbdask, over TCP, 2 replicas",
)
NUMPY, TORCH, DDP = "numpy, 2 threads", "torch, 2 threads", "ddp, 2 processes"
RAY = ("ray, 2 workers, 1 server", "ray, 2 workers, 2 servers")


class WholeEpochs:
    """A callback that stops at the end of an epoch, and tells the rate after the first one."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows, self.seconds = rows, seconds
        self.first: dbdask.Record | None = None
        self.last: dbdask.Record | None = None

    def __call__(self, record: dbdask.Record) -> bool:
        if record.examples % self.rows:
            return False
        if self.first is None:
            self.first = record
            return False
        self.last = record
        return record.seconds >= self.first.seconds + self.seconds

    @property
    def rate(self) -> float:
        """Return the examples a second."""
        assert self.first is not None and self.last is not None, "not even two epochs were trained"
        examples = self.last.examples - self.first.examples
        return examples / (self.last.seconds - self.first.seconds)


def dbdask_rate(
    name: str,
    path: str,
    seconds: float,
    *,
    replicas: int,
    threads: int = 1,
    processes: bool = True,
    transport: str = "auto",
) -> float:
    """Return the rate of Downpour on a cluster of its own, with one replica for each worker."""
    net = NETS[name]
    epochs = WholeEpochs(net.rows, seconds)
    with (
        dask.config.set({"dbdask.transport": transport}),
        cluster_of(replicas, threads=threads, processes=processes) as client,
    ):
        dbdask.downpour(
            net.network(),
            examples_of(path),
            client=client,
            optimizer=dbdask.adagrad(RATE),
            batch_size=net.batch,
            epochs=100_000,
            replicas=replicas,
            callbacks=[epochs],
            progress=False,
        )
    return epochs.rate


def contestants(name: str, path: str, seconds: float) -> list[Contestant]:
    """Return what is measured."""

    def of(label: str, rate: Callable[[], float], needs: tuple[str, ...] = ()) -> Contestant:
        def measure() -> Figures:
            return {"examples/s": rate()}

        return Contestant(label, measure, needs)

    ours = partial(dbdask_rate, name, path, seconds)
    settings: tuple[dict[str, Any], ...] = (
        {"replicas": 2},
        {"replicas": 1},
        {"replicas": 2, "processes": False},
        {"replicas": 1, "processes": False},
        {"replicas": 1, "processes": False, "threads": 2},
        {"replicas": 2, "transport": "dask"},
    )
    return [
        of(LIMIT, partial(limit_rate, name, seconds)),
        *(of(label, partial(ours, **each)) for label, each in zip(OURS, settings, strict=True)),
        of("numpy, 1 thread", partial(numpy_rate, name, 1, seconds)),
        of(NUMPY, partial(numpy_rate, name, 2, seconds)),
        of("torch, 1 thread", partial(torch_rate, name, 1, seconds), ("torch",)),
        of(TORCH, partial(torch_rate, name, 2, seconds), ("torch",)),
        of(DDP, partial(ddp_rate, name, seconds), ("torch",)),
        of(RAY[0], partial(ray_rate, name, 1, seconds), ("ray",)),
        of(RAY[1], partial(ray_rate, name, 2, seconds), ("ray",)),
    ]


def pairs(name: str) -> list[Pair]:
    """Return the ratios that a net's table is judged by."""
    found = [
        Pair(TWO, LIMIT, {"small": 0.70, "medium": 0.85}.get(name)),
        Pair(TWO, TORCH, {"small": 1.0}.get(name)),
        Pair(TWO, ONE, 1.6),
    ]
    if name == "paper":
        found += [Pair(OURS, NUMPY, 1.0), Pair(OURS, RAY, 1.2), Pair(OURS, DDP, 1.6)]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each net."""
    found = parser(__doc__)
    found.add_argument("--nets", nargs="+", choices=NETS, default=list(COMPARED))
    found.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least")
    options = found.parse_args(arguments)
    report = Report("peers_throughput", options, ("torch", "ray"))
    for name in options.nets:
        net = NETS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/store.zarr"
            net.write(path)
            title = (
                f"{'-'.join(map(str, net.widths))}, {net.network().parameter_count:,} parameters, "
                f"batch {net.batch}"
            )
            entrants = contestants(name, path, options.seconds)
            report.compare(title, entrants, LIMIT, pairs(name))
    report.end()


if __name__ == "__main__":
    main()
