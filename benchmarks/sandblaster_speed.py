"""A Sandblaster pass beside the same arithmetic alone, for the paper's speech net and a small one.

    python -m benchmarks.sandblaster_speed [--nets small paper] [--rounds 5] [--rows 24576]

Contestants, with the same minibatches, whose gradients are added into one vector:

- `sandblaster`: two worker processes of one thread; a pass is what the history says, reading and
  pushes included, commands of L-BFGS not; the first pass is left out;
- `computing`: two processes of one thread that only compute, each half of the minibatches;
- `one process`: one process with two threads that only computes.

Beside a pass stand the megabytes that an evaluation sends through the process of client and
scheduler, and what an iteration of L-BFGS costs beside its passes: the rounds of commands, those of
the line search included, and their milliseconds.
"""

import collections
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import tornado.iostream
from threadpoolctl import threadpool_limits

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._nets import Net, examples_of
from benchmarks._processes import together, wait_for_the_others
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, at_least_one, parser
from dbdask.run.parameter_server import ParameterServer

ROWS = 24_576
NETS = {
    "small": Net(440, (64,), 32, 256, ROWS),
    "paper": Net(440, (2560,) * 4, 8192, 256, ROWS),
}
PASSES = {"small": 20, "paper": 3}
OURS, COMPUTING, ALONE = (
    "sandblaster, 2 workers",
    "computing, 2 processes",
    "one process, 2 threads",
)
WANTED = {"paper": 1.15}  # times a pass in one process, at most
MS = "ms a pass"


class Traffic:
    """Counts the bytes that sockets of this process carry, and the rounds of commands."""

    def __init__(self) -> None:
        self.bytes = 0
        self.commands: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "Traffic":
        stream = tornado.iostream.IOStream
        self.before = stream.read_from_fd, stream.write_to_fd, ParameterServer.command
        read, write, command = self.before

        def counted_read(this, buffer):
            count = read(this, buffer)
            self.bytes += count or 0
            return count

        def counted_write(this, data):
            count = write(this, data)
            self.bytes += count
            return count

        async def counted_command(this, name, *arguments, **options):
            self.commands[name] += 1
            return await command(this, name, *arguments, **options)

        stream.read_from_fd, stream.write_to_fd = counted_read, counted_write
        ParameterServer.command = counted_command  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        stream = tornado.iostream.IOStream
        stream.read_from_fd, stream.write_to_fd, ParameterServer.command = self.before


def train(net: Net, path: str, passes: int) -> tuple[list[dbdask.Record], Traffic]:
    """Make so many passes on a cluster of its own; return the records, and what was counted."""
    records: list[dbdask.Record] = []

    def is_over(record: dbdask.Record) -> bool:
        records.append(record)
        return record.evaluations >= passes

    with cluster_of(2) as client, tempfile.TemporaryDirectory() as folder, Traffic() as traffic:
        dbdask.sandblaster(
            net.network(),
            examples_of(path),
            client=client,
            iterations=passes,
            tolerance=0.0,
            history_length=3,
            checkpoint=f"{folder}/run.zarr",  # else the client collects the parameters at the end
            snapshot_every="1h",
            portion_size=net.batch,
            callbacks=[is_over],
            progress=False,
        )
    return records, traffic


def seconds_of_passes(records: list[dbdask.Record]) -> list[float]:
    """Return the mean seconds of a pass between two records: a search may make several."""
    found, seconds, evaluations = [], 0.0, 0.0
    for record in records:
        count = record.evaluations - evaluations
        found.append((record.seconds_evaluating - seconds) / count)
        seconds, evaluations = record.seconds_evaluating, record.evaluations
    return found


def ours(net: Net, path: str, passes: int) -> Figures:
    """Return the figures of Sandblaster."""
    records, traffic = train(net, path, passes)
    seconds, last = seconds_of_passes(records), records[-1]
    iterations = max(1.0, last.iteration)
    rounds = sum(traffic.commands[name] for name in ("carry_out", "open_pass", "close_pass"))
    return {
        MS: 1000 * statistics.median(seconds[1:] or seconds),
        "MB an evaluation": traffic.bytes / last.evaluations / 1e6,
        "command rounds an iteration": rounds / iterations,
        "ms of commands an iteration": 1000 * last.seconds_commanding / iterations,
    }


def _computed(number: int, net: Net, processes: int, threads: int, passes: int) -> list[float]:
    """Compute one of so many shares of each pass; return the seconds of each."""
    values, labels = net.values()
    inputs = values.astype(np.float32)
    model = net.network()
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient, accrued = np.empty_like(parameters), np.zeros_like(parameters)

    def accrue(start: int) -> None:
        batch = slice(start, start + net.batch)
        model.loss_and_gradient(
            parameters, inputs[batch], labels[batch], weights=None, gradient=gradient
        )
        np.add(accrued, gradient, out=accrued)

    seconds = []
    with threadpool_limits(threads):
        accrue(0)  # first touches of memory
        for _ in range(passes):
            wait_for_the_others()
            began = time.perf_counter()
            for start in range(number * net.batch, net.rows, processes * net.batch):
                accrue(start)
            seconds.append(time.perf_counter() - began)
    return seconds


def computed(net: Net, processes: int, threads: int, passes: int) -> Figures:
    """Return the figures of computing alone: a pass ends when the last process has ended it."""
    shares = together(_computed, processes, net, processes, threads, passes)
    return {MS: 1000 * statistics.median(map(max, zip(*shares, strict=True)))}


def contestants(net: Net, path: str, passes: int) -> list[Contestant]:
    """Return what is measured."""
    return [
        Contestant(OURS, partial(ours, net, path, passes)),
        Contestant(COMPUTING, partial(computed, net, 2, 1, passes)),
        Contestant(ALONE, partial(computed, net, 1, 2, passes)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each net."""
    found = parser(__doc__)
    found.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    found.add_argument("--rows", type=at_least_one, default=ROWS)
    found.add_argument(
        "--passes",
        type=at_least_one,
        help="of a turn; default: 20 of the small net, 3 of the other",
    )
    options = found.parse_args(arguments)
    report = Report("sandblaster_speed", options)
    for name in options.nets:
        net = replace(NETS[name], rows=options.rows)
        pairs = [
            Pair(OURS, COMPUTING, less_is_better=True),
            Pair(OURS, ALONE, WANTED.get(name), less_is_better=True),
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/store.zarr"
            net.write(path)
            title = f"{name} net, {net.network().parameter_count:,} parameters, {net.rows:,} rows"
            entrants = contestants(net, path, options.passes or PASSES[name])
            report.compare(title, entrants, COMPUTING, pairs)
    report.end()


if __name__ == "__main__":
    main()
