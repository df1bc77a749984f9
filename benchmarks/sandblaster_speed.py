"""A Sandblaster pass on the paper's speech net, against the same arithmetic in one process.

    python -m benchmarks.sandblaster_speed [--rows 24576] [--passes 5]

Two workers on two cores against one process with two threads: the same minibatches, gradients
added into one vector. Then what travels through the process of client and scheduler, for this net
and for a small one, and the rounds of commands in an iteration.
"""

import argparse
import collections
import statistics
import tempfile
import time

import numpy as np
import tornado.iostream
import xarray as xr
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

import dbdask
from dbdask.run.parameter_server import ParameterServer

MINIBATCH = 256
BOUND = 1.15  # times the pass in one process
NETS = {"paper": (440, [2560] * 4, 8192), "small": (440, [64], 32)}


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


def make_network(name: str) -> dbdask.Network:
    inputs, hidden, outputs = NETS[name]
    layers = [dbdask.Dense(units, "sigmoid") for units in hidden]
    return dbdask.Network(
        input_shape=(inputs,), layers=[*layers, dbdask.Dense(outputs)], loss="softmax"
    )


def draw(rows: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(rows, 440)).astype(np.float32),
        rng.integers(0, outputs, size=rows, dtype=np.int64),
    )


def train(client: Client, name: str, path: str, passes: int) -> list[dbdask.Record]:
    records: list[dbdask.Record] = []
    dbdask.sandblaster(
        make_network(name),
        dbdask.Examples(path, inputs="x", targets="label", along="row"),
        client=client,
        iterations=passes,
        tolerance=0.0,
        history_length=3,
        checkpoint=f"{path}-run",  # else the client collects the parameters at the end
        snapshot_every="1h",
        portion_size=MINIBATCH,
        callbacks=[lambda record: records.append(record) or record.evaluations >= passes],
        progress=False,
    )
    return records


def seconds_of_passes(records: list[dbdask.Record]) -> list[float]:
    """Mean seconds of a pass between two records (a search may make several)."""
    found, seconds, evaluations = [], 0.0, 0.0
    for record in records:
        count = record.evaluations - evaluations
        found.append((record.seconds_evaluating - seconds) / count)
        seconds, evaluations = record.seconds_evaluating, record.evaluations
    return found


def peer(rows: int) -> float:
    """Seconds of the same pass in this process, with two threads."""
    inputs, labels = draw(rows, NETS["paper"][2])
    model = make_network("paper")
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient, accrued = np.empty_like(parameters), np.zeros_like(parameters)
    with threadpool_limits(2):
        began = time.perf_counter()
        for start in range(0, rows, MINIBATCH):
            batch = slice(start, start + MINIBATCH)
            model.loss_and_gradient(
                parameters, inputs[batch], labels[batch], weights=None, gradient=gradient
            )
            np.add(accrued, gradient, out=accrued)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=24_576)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    theirs = [peer(options.rows) for _ in range(2)]
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for name in NETS:
            inputs, labels = draw(options.rows, NETS[name][2])
            data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
            encoding = {"x": {"chunks": (1024, 440)}, "label": {"chunks": (1024,)}}
            path = f"{folder}/{name}.zarr"
            data.to_zarr(path, consolidated=False, encoding=encoding)
            with Traffic() as traffic:
                records = train(client, name, path, options.passes)
            ours = seconds_of_passes(records)
            last = records[-1]
            print(
                f"{name} net, {make_network(name).parameter_count:,} parameters: "
                f"{traffic.bytes / last.evaluations / 1e6:.2f} MB an evaluation through client and "
                f"scheduler; {last.iteration:.0f} iterations, {last.evaluations:.0f} evaluations, "
                f"{traffic.commands['carry_out']} rounds beside the line search's "
                f"{traffic.commands['open_pass'] + traffic.commands['close_pass']}; commands took "
                f"{last.seconds_commanding / max(1, last.iteration):.2f} s an iteration",
                flush=True,
            )
            if name == "paper":
                own, other = statistics.median(ours[1:]), statistics.median(theirs)
                print(
                    f"  pass: median {own:.2f} s ({', '.join(f'{s:.2f}' for s in ours)}), one "
                    f"process {other:.2f} s ({', '.join(f'{s:.2f}' for s in theirs)}): "
                    f"ratio {own / other:.2f}",
                    flush=True,
                )
                assert own <= BOUND * other, f"more than {BOUND} times one process"
    print(f"  one process afterwards: {peer(options.rows):.2f} s")


if __name__ == "__main__":
    main()
