"""The coordinator: portions a second, and the processor time of client and scheduler.

    python -m benchmarks.coordinator [--workers 8 64 200] [--seconds 20] [--rounds 5]

Downpour on many workers with portions of one second. The gradient of the model sleeps: it stands
for a computation that takes none of the coordinator's processor time, so that few cores can play
many workers. All workers are threads of one process, and a portion fetches and pushes once, so that
this process does little; the scheduler and the client have a process each, and their processor
seconds by the clock are shown as cores. `busy` is the work done over what the workers could do:
sleeping alone counts, and fetches, pushes, reading and everything between two portions do not.

Portions are cut by the nominal speed of a thread; it is set so low here that a portion has the
least number of minibatches, 16.
"""

import asyncio
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

import dask
import numpy as np
import psutil
import xarray as xr
from distributed import Client, Scheduler, Worker

import dbdask
from benchmarks._figures import Figures
from benchmarks._ratios import Target
from benchmarks._side_by_side import Contestant, Report, parser
from dbdask.schedule import portions

BATCH = 8
STEPS = 16  # of a portion
PORTION = BATCH * STEPS
PORTION_SECONDS = 1.0
EPOCH_SECONDS = 600  # longer than a turn: an epoch ends at rest
WANTED = {64: 0.95}  # of the time of so many workers, busy at least
SETTLED = 2  # portions of every worker before the clock starts
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.limit": "1h",
    "distributed.worker.memory.terminate": False,
}


class Sleeping:
    """A model whose portion takes a second of sleep."""

    loss = "squared"

    def __init__(self) -> None:
        self.layout = dbdask.Layout((dbdask.Parameter("w", (8,), ("w",)),))

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        return np.ones(stop - start, np.float32)

    def loss_and_gradient(
        self,
        parameters: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray | None,
        *,
        weights: np.ndarray | None,
        seed: int,
        gradient: np.ndarray,
    ) -> float:
        time.sleep(PORTION_SECONDS * len(inputs) / PORTION)
        np.multiply(parameters, np.float32(len(inputs)), out=gradient)
        return 0.5 * len(inputs) * float(parameters @ parameters)

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.zeros((len(inputs), 1), np.float32)


def run_scheduler(tell: Connection) -> None:
    """Run a scheduler until it is shut down."""

    async def serve() -> None:
        async with Scheduler(protocol="tcp", port=0, dashboard=False) as scheduler:
            tell.send(scheduler.address)
            await scheduler.finished()

    run_quietly(serve)


def run_workers(address: str, count: int, tell: Connection) -> None:
    """Run workers of one thread until they are shut down."""

    async def serve() -> None:
        workers = [
            Worker(address, nthreads=1, name=number, memory_limit=0, dashboard=False)
            for number in range(count)
        ]
        await asyncio.gather(*workers)
        tell.send("ready")
        await asyncio.gather(*(worker.finished() for worker in workers))

    run_quietly(serve)


def run_quietly(serve: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a coroutine in this process, with little in its log and no profiler."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set(QUIET):
        asyncio.run(serve())


@contextmanager
def cluster(count: int) -> Iterator[tuple[Client, psutil.Process]]:
    """Yield the client of a cluster of so many workers, and the scheduler's process."""
    context = multiprocessing.get_context("spawn")
    hear, tell = context.Pipe(duplex=False)
    scheduler = context.Process(target=run_scheduler, args=(tell,))
    scheduler.start()
    address = hear.recv()
    workers = context.Process(target=run_workers, args=(address, count, tell))
    workers.start()
    assert hear.recv() == "ready"
    with Client(address) as client:
        yield client, psutil.Process(scheduler.pid)
        client.shutdown()
    for process in (workers, scheduler):
        process.join()


def seconds_of(process: psutil.Process) -> float:
    """Return the processor seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


class Window:
    """A callback that looks at portions from a moment when all workers are at work.

    Reports come in bursts, because all workers began together. The window has so many reports
    that each worker makes the same number: it begins and ends with the report of about the same
    worker.
    """

    def __init__(self, workers: int, seconds: float, scheduler: psutil.Process) -> None:
        self.workers, self.seconds = workers, seconds
        self.processes = {"client": psutil.Process(), "scheduler": scheduler}
        self.moments: list[tuple[float, int, dict[str, float]]] = []
        self.reports = 0

    def __call__(self, record: dbdask.Record) -> bool:
        self.reports += 1
        past = self.reports - SETTLED * self.workers
        if past < 0 or past % self.workers:
            return False
        used = {name: seconds_of(process) for name, process in self.processes.items()}
        self.moments.append((time.perf_counter(), record.examples, used))
        return self.moments[-1][0] >= self.moments[0][0] + self.seconds

    @property
    def figures(self) -> Figures:
        """Return the figures of the window."""
        (began, before, first), (ended, after, last) = self.moments[0], self.moments[-1]
        passed, done = ended - began, (after - before) / PORTION
        return {
            "portions/s": done / passed,
            "busy": done * PORTION_SECONDS / (self.workers * passed),
            **{f"{name}, cores": (last[name] - first[name]) / passed for name in last},
        }


def measured(count: int, seconds: float) -> Figures:
    """Return the figures of a run on so many workers."""
    rows = count * PORTION * round(EPOCH_SECONDS / PORTION_SECONDS)
    with tempfile.TemporaryDirectory() as folder, cluster(count) as (client, scheduler):
        path = f"{folder}/store.zarr"
        zeros = np.zeros(rows, np.float32)
        data = xr.Dataset({"x": ("row", zeros), "y": ("row", zeros)})
        data.chunk({"row": 64 * PORTION}).to_zarr(path, consolidated=False)
        window = Window(count, seconds, scheduler)
        dbdask.downpour(
            Sleeping(),
            dbdask.Examples(path, inputs="x", targets="y", along="row"),
            client=client,
            optimizer=dbdask.sgd(1e-6),
            batch_size=BATCH,
            n_fetch=STEPS,
            n_push=STEPS,
            callbacks=[window],
            progress=False,
        )
    return window.figures


def called(count: int) -> str:
    """Return the name of the contestant with so many workers."""
    return f"{count} workers"


@contextmanager
def least_portions() -> Iterator[None]:
    """Let a portion have the least number of minibatches."""
    nominal = portions.NOMINAL_FLOPS
    portions.NOMINAL_FLOPS = 1.0
    try:
        yield
    finally:
        portions.NOMINAL_FLOPS = nominal


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, a line for each number of workers."""
    found = parser(__doc__)
    found.add_argument("--workers", type=int, nargs="+", default=[8, 64, 200])
    found.add_argument("--seconds", type=float, default=20.0, help="of a turn, at least")
    options = found.parse_args(arguments)
    report = Report("coordinator", options)
    turns: list[tuple[int, Callable[[], Figures]]] = [
        (count, partial(measured, count, options.seconds)) for count in options.workers
    ]
    with least_portions():
        report.compare(
            f"portions of {PORTION_SECONDS:g} s",
            [Contestant(called(count), turn) for count, turn in turns],
            targets=[Target(called(n), "busy", WANTED.get(n)) for n in options.workers],
        )
    report.end()


if __name__ == "__main__":
    main()
