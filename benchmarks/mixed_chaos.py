"""Everything at once, in random order: do runs end, exactly, and never silent for long?

    python -m benchmarks.mixed_chaos [--downpour 20] [--sandblaster 10] [--first 0] [--seconds 25]
        [--transport auto] [--partitions 1]

For each seed a cluster of three workers trains while workers are killed, stopped, restarted and
retired, tasks are cancelled, the cluster is scaled, the client's own process is stopped, the data's
store is slow or gone, and the model raises. A run that ends with an error is gone on from with
`resume="auto"`, as a script that is started again does. Downpour trains a model that counts each
example once for each of two shards; Sandblaster a linear regression of which the optimum is known.
With `--partitions 2` both are cut over gangs of two workers, and each part counts for itself.
`--transport` is `dbdask.transport` of every process; with "in-process" the workers are threads of
one process, and what is done to processes (kill, stop, restart) is left out.
Each seed runs in a process of its own, with a bound on its time. The table shows what happened, and
the program fails where a run hangs, miscounts, misses the optimum, or says nothing for 30 s.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from distributed import Client, Future, LocalCluster
from zarr.storage import LocalStore, WrapperStore

import dbdask
from benchmarks._chaos_models import CountingRows, Moods, Reversing, missing_updates
from dbdask.rpc.transport import WAYS

ROWS, FEATURES, BATCH, EPOCHS, WORKERS = 1200, 6, 20, 8, 3
RATE = 0.5
PACE = 0.15  # seconds of a minibatch, until the mischief is over
LONGEST_SILENCE = 30.0  # a run that works says so every 20 s
MOST_SECONDS = 400.0  # of one seed
MOST_RUNS = 12  # of one seed, each but the first one gone on from
CONFIG = {
    "dbdask.silence": "2s",
    "dbdask.ping": "5s",
    "dbdask.answer": "2s",
    "dbdask.arrival": "40s",
    "dbdask.read": "30s",
    "distributed.deploy.lost-worker-timeout": "1h",  # else it closes nannies of killed workers
    "distributed.worker.profile.enabled": False,
}


class Moody(WrapperStore):
    """A store that is slow, or gone, while a file says so."""

    def __init__(self, store, folder: str) -> None:
        super().__init__(store)
        self.folder = folder

    @classmethod
    def at(cls, folder: str) -> "Moody":
        return cls(LocalStore(f"{folder}/data", read_only=True), folder)

    def __reduce__(self):
        return Moody.at, (self.folder,)

    def __eq__(self, other):
        return isinstance(other, Moody) and other.folder == self.folder

    async def get(self, key, prototype, byte_range=None):
        if os.path.exists(f"{self.folder}/gone"):
            raise OSError("the store is gone")
        if os.path.exists(f"{self.folder}/slow"):
            await asyncio.sleep(random.uniform(0.5, 3.0))
        return await self._store.get(key, prototype, byte_range)


def make_data(folder: str) -> float:
    """Write the data; returns the least loss of the linear regression, which has two outputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    noise = 0.1 * rng.normal(size=(ROWS, 2))
    targets = (inputs @ rng.normal(size=(FEATURES, 2)) + noise).astype(np.float32)
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    data = xr.Dataset(
        {
            "number": (("row", "input"), np.concatenate([np.zeros((ROWS, 2)), rows], axis=1)),
            "x": (("row", "feature"), np.concatenate([inputs, rows / ROWS], axis=1)),
            "y": (("row", "output"), targets),
        }
    )
    data.chunk(row=60).to_zarr(f"{folder}/data", consolidated=False)
    design = np.concatenate([inputs, rows / ROWS, np.ones((ROWS, 1), np.float32)], axis=1)
    best = np.linalg.lstsq(design.astype(np.float64), targets.astype(np.float64), rcond=None)[0]
    return float(np.mean(np.sum((design @ best - targets) ** 2, axis=1)) / 2)


class Silence(logging.Handler):
    """Measures how long nothing was said: neither by a record nor in the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.heard = time.monotonic()
        self.longest = 0.0
        self.begun = threading.Event()  # training, by its first record
        self.asleep = 0.0  # of the process itself, which could say nothing
        self.stopped: float | None = None  # since when it may be stopped

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("the run begins"):
            self.begin()  # importing, and looking at the data, is no run yet
        self.hear()

    def begin(self) -> None:
        """Count from now on."""
        self.heard, self.asleep = time.monotonic(), 0.0

    def wake(self, *, is_over: bool = False) -> float:
        """Count the time in which the process may have been stopped; returns the time."""
        now = time.monotonic()
        if self.stopped is not None:
            self.asleep += now - self.stopped
            self.stopped = None if is_over else now
        return now

    def hear(self, record: object = None) -> None:
        now = self.wake()
        self.longest = max(self.longest, now - self.heard - self.asleep)
        self.heard, self.asleep = now, 0.0
        if isinstance(record, dbdask.Record):
            self.begun.set()


class Mischief(threading.Thread):
    """Does one random thing after the other, until its time is up."""

    def __init__(self, cluster, client: Client, folder: str, options, silence: Silence) -> None:
        super().__init__(daemon=True)
        self.cluster, self.client, self.folder, self.silence = cluster, client, folder, silence
        self.random = random.Random(options.seed)
        self.seconds, self.transport = options.seconds, options.transport
        self.done: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        self.silence.begun.wait()
        until = time.monotonic() + self.seconds
        to_processes = {self.kill: 4, self.stop: 3, self.restart_one: 2, self.restart: 1}
        actions = {
            **(to_processes if has_processes(self.transport) else {}),
            self.cancel: 2,
            self.retire: 2,
            self.scale: 2,
            self.pause: 2,
            self.slow: 2,
            self.gone: 1,
            self.raising: 2,
        }
        while time.monotonic() < until and not self.over.wait(self.random.uniform(0.5, 3.0)):
            (action,) = self.random.choices(list(actions), list(actions.values()))
            print(f"{time.strftime('%H:%M:%S')} {action.__name__}", file=sys.stderr, flush=True)
            try:
                action()
                self.done[action.__name__] += 1
            except Exception as error:  # whom it was meant for is gone already
                print(f"no {action.__name__}: {error!r}"[:200], file=sys.stderr, flush=True)
        self.settle()
        Path(f"{self.folder}/over").touch()

    def settle(self) -> None:
        """See that there are workers: those that were retired do not come back."""
        for name in ("slow", "gone", "raising"):
            Path(f"{self.folder}/{name}").unlink(missing_ok=True)
        self.see_to_workers(WORKERS)

    def see_to_workers(self, least: int) -> None:
        lacking = least - len(self.workers())
        if lacking > 0:
            self.cluster.scale(len(self.cluster.worker_spec) + lacking)

    def workers(self) -> list[str]:
        return sorted(
            self.client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.workers])
        )

    def process_of(self, worker: str) -> int:
        """Of a worker that may be stopped: it is asked by the scheduler's own books."""
        return self.client.run_on_scheduler(
            lambda dask_scheduler: dask_scheduler.workers[worker].extra.get("pid")
        ) or next(iter(self.client.run(os.getpid, workers=[worker]).values()))

    def kill(self) -> None:
        os.kill(self.process_of(self.random.choice(self.workers())), signal.SIGKILL)

    def stop(self) -> None:
        process, seconds = self.process_of(self.random.choice(self.workers())), self.random.random()
        os.kill(process, signal.SIGSTOP)
        later(1 + 9 * seconds, process)

    def restart_one(self) -> None:
        self.client.restart_workers([self.random.choice(self.workers())], timeout=20)

    def restart(self) -> None:
        self.client.restart(timeout=20)

    def cancel(self) -> None:
        keys = [key for key in list(self.client.futures) if str(key).startswith("dbdask-portion")]
        keys += [key for key in list(self.client.futures) if str(key).startswith("dbdask-bundle")]
        self.client.cancel([Future(key, self.client) for key in keys[:3]], force=True)

    def retire(self) -> None:
        self.client.retire_workers([self.random.choice(self.workers())])
        self.see_to_workers(2)

    def scale(self) -> None:
        self.cluster.scale(max(2, len(self.cluster.worker_spec) + self.random.choice((-1, 1))))

    def pause(self) -> None:
        """Stop this process itself, and with it the scheduler."""
        seconds = self.random.uniform(2.0, 8.0)
        later(seconds, os.getpid())
        self.silence.stopped = time.monotonic()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.silence.wake(is_over=True)

    def slow(self) -> None:
        self.mood("slow", self.random.uniform(2.0, 6.0))

    def gone(self) -> None:
        self.mood("gone", self.random.uniform(0.5, 2.0))

    def raising(self) -> None:
        self.mood("raising", self.random.uniform(1.0, 3.0))

    def mood(self, name: str, seconds: float) -> None:
        Path(f"{self.folder}/{name}").touch()
        self.over.wait(seconds)
        Path(f"{self.folder}/{name}").unlink(missing_ok=True)


def has_processes(transport: str) -> bool:
    """Return whether workers have processes of their own: else all calls are in one process."""
    return transport != "in-process"


def later(seconds: float, process: int) -> None:
    """Let a stopped process go on, from a process that is not stopped."""
    subprocess.Popen(
        ["sh", "-c", f"sleep {seconds}; kill -CONT {process}; sleep 2; kill -CONT {process}"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def one(options: argparse.Namespace) -> dict:
    """Run one seed; what happened, and how it is judged, comes back."""
    silence, ends = Silence(), []
    said = logging.StreamHandler()
    said.setFormatter(logging.Formatter("%(asctime)s %(message).400s"))
    for handler in (silence, said):
        logging.getLogger("dbdask").addHandler(handler)
    logging.getLogger("dbdask").setLevel(logging.INFO)
    warnings.simplefilter("ignore")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=has_processes(options.transport),
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        optimum = make_data(folder)
        mischief = Mischief(cluster, client, folder, options, silence)
        mischief.start()
        silence.begin()  # starting the cluster is no run either
        for _ in range(MOST_RUNS):
            try:
                algorithm = ALGORITHMS[options.algorithm]
                result = algorithm(client, folder, silence, options.partitions)
            except Exception as error:
                ends.append(type(error).__name__)
                print(f"a run ended: {error!r}"[:600], file=sys.stderr, flush=True)
                silence.hear()
                time.sleep(1.0)
                continue
            break
        else:
            raise AssertionError(f"no run came to its end: {ends}")
        silence.hear()
        silence.begun.set()
        mischief.over.set()
        mischief.join(60)
        ends.append(result.status.reason)
        verdict = JUDGES[options.algorithm](result, optimum)
    return {
        "algorithm": options.algorithm,
        "seed": options.seed,
        "did": dict(mischief.done),
        "ends": ends,
        "lost": int(result.history["lost"].values[-1]),
        "silence": round(silence.longest, 1),
        "seconds": round(time.monotonic() - began),
        "verdict": verdict,
    }


def network(*layers: object, inputs: int, folder: str) -> dbdask.Network:
    """Return a network of some layers with two outputs, which takes its time."""
    last = Reversing(Moods(folder, PACE))
    return dbdask.Network(input_shape=(inputs,), layers=[*layers, last], loss="squared")


def downpour(client: Client, folder: str, silence: Silence, partitions: int) -> dbdask.Result:
    return dbdask.downpour(
        network(CountingRows(2, ROWS, RATE), inputs=3, folder=folder),
        dbdask.Examples(Moody.at(folder), inputs="number", targets="y", along="row"),
        client=client,
        optimizer=dbdask.sgd(RATE),
        batch_size=BATCH,
        epochs=EPOCHS,
        partitions=partitions,
        shards=2,
        checkpoint=f"{folder}/run.zarr",
        snapshot_every="1s",
        resume="auto",
        callbacks=[silence.hear],
    )


def sandblaster(client: Client, folder: str, silence: Silence, partitions: int) -> dbdask.Result:
    return dbdask.sandblaster(
        network(dbdask.Dense(2), inputs=FEATURES + 1, folder=folder),
        dbdask.Examples(Moody.at(folder), inputs="x", targets="y", along="row"),
        client=client,
        iterations=40,
        partitions=partitions,
        shards=2,
        checkpoint=f"{folder}/run.zarr",
        snapshot_every="1s",
        resume="auto",
        callbacks=[silence.hear],
    )


def counted(result: dbdask.Result, optimum: float) -> str:
    """Each example counts as often as the history says."""
    rolled_back = int(result.history["rolled_back"].values[-1])
    missing = missing_updates(result, EPOCHS, BATCH)
    assert missing == rolled_back, f"{missing} updates are missing, {rolled_back} are told"
    return f"{rolled_back} of {2 * EPOCHS * ROWS // BATCH} rolled back"


def at_optimum(result: dbdask.Result, optimum: float) -> str:
    loss = float(result.history["loss"].values[-1])
    off = loss / optimum - 1
    assert -1e-3 < off < 1e-3, f"the loss {loss:g} is off the optimum {optimum:g}"
    return f"off the optimum by {off:.0e}"


ALGORITHMS = {"downpour": downpour, "sandblaster": sandblaster}
JUDGES = {"downpour": counted, "sandblaster": at_optimum}


def table_line(found: dict) -> str:
    did = found["did"]
    acts = ", ".join(f"{did[name]} {name}" for name in sorted(did))
    return (
        f"| {found['algorithm']} {found['seed']} | {acts} | {', '.join(found['ends'])} | "
        f"{found['lost']} | {found['verdict']} | {found['silence']} | {found['seconds']} |"
    )


def in_a_process(algorithm: str, seed: int, options: argparse.Namespace) -> dict:
    """Run a seed in a process of its own, which is ended where it hangs."""
    command = [sys.executable, "-m", "benchmarks.mixed_chaos", "--algorithm", algorithm]
    command += ["--seed", str(seed), "--seconds", str(options.seconds)]
    command += ["--transport", options.transport, "--partitions", str(options.partitions)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        try:
            answer, _ = process.communicate(timeout=MOST_SECONDS)
            return json.loads(answer.splitlines()[-1])
        except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
            said.seek(0)
            print("".join(said.readlines()[-60:]), file=sys.stderr, flush=True)
            hangs = isinstance(error, subprocess.TimeoutExpired)
            why = "HANGS" if hangs else "FAILED"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    nothing = {"did": {}, "ends": [], "lost": 0, "silence": 0.0, "seconds": 0}
    return {"algorithm": algorithm, "seed": seed, **nothing, "verdict": why}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--downpour", type=int, default=20, help="seeds")
    parser.add_argument("--sandblaster", type=int, default=10, help="seeds")
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--seconds", type=float, default=25.0, help="of mischief")
    parser.add_argument("--transport", choices=("auto", *WAYS), default="auto")
    parser.add_argument("--partitions", type=int, choices=(1, 2), default=1)
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), help="run one seed here")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.algorithm:
        dask.config.set(CONFIG | {"dbdask.transport": options.transport})
        print(json.dumps(one(options)), flush=True)
        os._exit(0)  # nothing more is of interest, and no stopped worker is waited for
    print(f"transport {options.transport}, partitions {options.partitions}")
    print("| seed | what was done | ends | copies lost | verdict | longest silence, s | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    found = []
    for algorithm, count in (("downpour", options.downpour), ("sandblaster", options.sandblaster)):
        for seed in range(options.first, options.first + count):
            found.append(in_a_process(algorithm, seed, options))
            print(table_line(found[-1]), flush=True)
    longest = max(each["silence"] for each in found)
    print(f"longest silence {longest} s", flush=True)
    assert not [each for each in found if each["verdict"] in ("HANGS", "FAILED")]
    assert longest < LONGEST_SILENCE


if __name__ == "__main__":
    main()
