"""The paper's Figure 3: how much faster one replica is that is cut over several workers.

    python -m benchmarks.partition_speedup [--rounds 5] [--seconds 20] [--parts 1 2 4] [--json F]
        [--picture F]

Two nets of about 42 million parameters: the paper's speech net, all of whose layers are dense, and
an image net of the paper's shape, whose filters are local. Measured: steps a second of `downpour`
with one replica and `partitions=`, each part on a worker process of one thread that is bound to one
core; where there are more parts than cores, they share them. All numbers of parts have their turn
in every round. One part is always among them: the others are divided by it.

Computed, on a panel of its own: a step takes the time of the busiest part in each layer, and then
that of every exchange. Seconds of a multiplication are those that make the computed step of one
part the measured one. Messages and bytes are counted by `dbdask.models.exchange_cost`; their
seconds are those of the networks that are stated. Stragglers are not computed.
"""

import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from distributed import Client
from matplotlib.figure import Figure

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures, Results
from benchmarks._ratios import Pair, median_ratio
from benchmarks._side_by_side import Contestant, Report, at_least_one, parser
from dbdask.models.cut import Cut, even_cut, part_stages
from dbdask.models.exchange_cost import exchange_cost, messages
from dbdask.models.partition import partition_of

WANTED = {"speech": 1.6, "image": 1.7}  # times the steps of one part, of two parts at least
RATE, EXCHANGING = "steps/s", "share of exchanges"
COMPUTED_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 81)
POOLED_ELEMENT = 50
"""Multiplications that take as long as an element of a pool or a contrast layer (measured)."""


class Wire(NamedTuple):
    """A network between machines."""

    name: str
    message: float
    """Seconds of a message, whatever its size."""
    byte: float
    """Seconds of one byte more."""


WIRES = (
    Wire("1 Gbit/s, 0.1 ms a message", 1e-4, 8e-9),
    Wire("10 Gbit/s, 0.05 ms a message", 5e-5, 8e-10),
)


def speech_net(small: bool) -> tuple[dbdask.Network, int]:
    """Return the paper's speech net, and the examples of a minibatch."""
    width, outputs = (64, 128) if small else (2560, 8192)
    layers = [dbdask.Dense(width, "sigmoid")] * 4 + [dbdask.Dense(outputs)]
    return dbdask.Network(input_shape=(440,), layers=layers, loss="softmax"), 256


def image_net(small: bool) -> tuple[dbdask.Network, int]:
    """Return a net of the paper's three stages with one-vs-all outputs, and a minibatch."""
    side, patch, outputs = (28, 3, 10) if small else (100, 10, 1000)
    layers: list[Any] = []
    for maps in (8, 16, 36):
        layers.append(dbdask.LocallyConnected(maps, patch))
        layers += [dbdask.L2Pool(2), dbdask.LocalContrastNorm(1 if small else 3)]
    shape = (side, side, 3)
    layers.append(dbdask.Dense(outputs))
    return dbdask.Network(input_shape=shape, layers=layers, loss="logistic"), 128


NETS: dict[str, Callable[[bool], tuple[dbdask.Network, int]]] = {
    "speech": speech_net,
    "image": image_net,
}


def write_examples(network: dbdask.Network, batch: int, path: str) -> None:
    """Write random bytes and labels: 16 minibatches, each a chunk."""
    rng = np.random.default_rng(0)
    rows, shape = 16 * batch, network.input_shape
    assert shape is not None
    dims = ("row", *(f"axis_{axis}" for axis in range(len(shape))))
    values = rng.integers(0, 255, (rows, *shape), dtype=np.uint8)
    labels = rng.integers(0, network.output_shape[0], rows, dtype=np.int16)
    data = xr.Dataset({"x": (dims, values), "label": ("row", labels)})
    data.chunk({"row": batch}).to_zarr(path, consolidated=False)


def bind(core: int) -> None:
    """Let all threads of this process run on one core only; threads to come do so, too."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def bind_workers(client: Client) -> None:
    """Bind every worker to a core, the first ones to different cores."""
    cores = sorted(os.sched_getaffinity(0))
    for number, address in enumerate(sorted(client.nthreads())):
        client.run(bind, cores[number % len(cores)], workers=[address])


def stop_after(seconds: float) -> Callable[[dbdask.Record], bool]:
    """Return a callback that stops a run so many seconds after its second record."""
    seen: list[float] = []

    def is_over(record: dbdask.Record) -> bool:
        seen.append(time.monotonic())
        return len(seen) > 2 and seen[-1] - seen[1] >= seconds

    return is_over


def measure(net: str, small: bool, path: str, parts: int, seconds: float) -> Figures:
    """Run `downpour` with so many parts on a cluster of its own.

    Returns
    -------
    Steps a second, those of the first portion left out, and the share of the parts' time in which
    they sent to each other and waited for each other.
    """
    network, batch = NETS[net](small)
    examples = dbdask.Examples(path, inputs="x", targets="label", along="row")
    with cluster_of(parts) as client:
        bind_workers(client)
        result = dbdask.downpour(
            network,
            examples.standardize(client=client),
            client=client,
            optimizer=dbdask.sgd(1e-3),
            batch_size=batch,
            epochs=100_000,
            replicas=1,
            partitions=parts,
            callbacks=[stop_after(seconds)],
            progress=False,
        )
    history = result.history
    seconds_since, steps = history["seconds"].values, history["step"].values
    rate = float(steps[-1] - steps[1]) / float(seconds_since[-1] - seconds_since[1])
    exchanging = 0.0
    if "seconds_exchanging" in history:
        exchanging = float(history["seconds_exchanging"].values[-1])
    return {RATE: rate, EXCHANGING: exchanging / (parts * float(seconds_since[-1]))}


def busiest(network: dbdask.Network, cut: Cut) -> int:
    """Return the multiplications of an example in the busiest part of each layer, added up.

    A parameter is used once in each of three products.
    """
    total = 0
    shares = [part_stages(network, cut, part) for part in range(cut.parts)]
    for number, stage in enumerate(network.stages):
        rows = max(share[number].rows[1] - share[number].rows[0] for share in shares)
        if stage.pieces:
            work = 3 * sum(piece.stop - piece.start for piece in stage.pieces)
        else:
            work = POOLED_ELEMENT * math.prod(stage.output_shape)
        total += rows * work // stage.output_shape[0]
    return total


def exchange_seconds(network: dbdask.Network, cut: Cut, batch: int, wire: Wire) -> float:
    """Return the seconds of a step's exchanges: of each, those of the part that receives most."""
    received: dict[tuple[int, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for message in messages(network, cut, batch):
        seconds = wire.message + wire.byte * message.size
        received[message.boundary, message.direction][message.receiver] += seconds
    return sum(max(by_part.values()) for by_part in received.values())


def cut_into(network: dbdask.Network, parts: int, batch: int) -> Cut:
    """Return the cut that a run takes."""
    partition = partition_of(network, parts, batch)
    return even_cut(network, 1) if partition is None else partition.cut


def most_parts(network: dbdask.Network) -> int:
    """Return into how many parts a network can be cut: the rows of its largest layer."""
    return max(stage.output_shape[0] for stage in network.stages if stage.pieces)


def computed(
    network: dbdask.Network, batch: int, step: float, most: int
) -> dict[str, dict[int, float]]:
    """Return the computed speed-ups by network between machines, and by number of parts.

    Parameters
    ----------
    network, batch
        The net, and the examples of a minibatch.
    step
        Measured seconds of a step of one part.
    most
        Parts, or fewer where the network has fewer rows.
    """
    whole = busiest(network, even_cut(network, 1))
    found: dict[str, dict[int, float]] = {wire.name: {} for wire in WIRES}
    for parts in (number for number in COMPUTED_PARTS if number <= min(most, most_parts(network))):
        cut = cut_into(network, parts, batch)
        share = step * busiest(network, cut) / whole
        for wire in WIRES:
            seconds = share + exchange_seconds(network, cut, batch, wire)
            found[wire.name][parts] = step / seconds
    return found


def draw(
    path: Path,
    measured: dict[str, dict[int, float]],
    modelled: dict[str, dict[str, dict[int, float]]],
    cores: int,
) -> None:
    """Draw the measured speed-ups on one panel, the computed ones on another."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {net: f"C{number}" for number, net in enumerate(measured)}
    parts = sorted({number for by_parts in measured.values() for number in by_parts})
    own = [number for number in parts if number <= cores]
    left.plot(own, own, ":", color="grey", label="ideal")
    for net, by_parts in measured.items():
        left.plot(
            list(by_parts), list(by_parts.values()), "o-", color=colours[net], label=f"{net} net"
        )
    if parts[-1] > cores:
        left.axvspan(max(own) + 0.05, parts[-1] + 0.2, color="grey", alpha=0.15, linewidth=0)
        left.text(
            parts[-1] + 0.15, 0.05, f"parts share\n{cores} cores", ha="right", color="dimgrey"
        )
    left.set(title="measured", xticks=parts, ylim=(0, None))
    for net, by_wire in modelled.items():
        for (wire, by_parts), style in zip(by_wire.items(), ("o-", "s--"), strict=True):
            numbers = list(by_parts)
            label = f"{net} net, {wire}"
            right.plot(
                numbers, list(by_parts.values()), style, ms=4, color=colours[net], label=label
            )
            best = max(numbers, key=by_parts.__getitem__)
            right.annotate(
                f"{by_parts[best]:.1f}x at {best}",
                (best, by_parts[best]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize="small",
                color=colours[net],
            )
    right.set_xscale("log", base=2)
    right.set(title="computed from the step of one part, and counted messages", ylim=(0, None))
    right.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    for panel in (left, right):
        panel.set(xlabel="parts, each on a worker", ylabel="speed-up of a step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="upper left")
    right.set_ylim(0, 1.45 * right.get_ylim()[1])  # room for the legend
    figure.savefig(path, dpi=120)


def called(parts: int) -> str:
    """Return the name of the contestant with so many parts."""
    return "1 part" if parts == 1 else f"{parts} parts"


def speed_ups(results: Results, all_parts: Sequence[int]) -> dict[int, float]:
    """Return the median speed-up by parts, of those that were measured; one part was."""
    rates = {n: [f[RATE] for f in results[called(n)]] for n in all_parts if called(n) in results}
    return {parts: median_ratio(found, rates[1]) for parts, found in rates.items()}


def compare(report: Report, net: str, all_parts: list[int], small: bool, seconds: float) -> Results:
    """Measure one net in so many parts each, and print its table."""
    network, batch = NETS[net](small)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{net}.zarr"
        write_examples(network, batch, path)
        results = report.compare(
            f"{net} net, {network.parameter_count:,} parameters, batch {batch}",
            [
                Contestant(called(parts), partial(measure, net, small, path, parts, seconds))
                for parts in all_parts
            ],
            called(1),
            [
                Pair(called(parts), called(1), WANTED[net] if parts == 2 else None)
                for parts in all_parts[1:]
            ],
        )
    for parts in all_parts[1:]:
        cost = exchange_cost(network, cut_into(network, parts, batch), batch)
        print(f"  {called(parts)}: {cost.messages} messages, {cost.size / 1e6:.1f} MB a step")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each net, and draw the picture."""
    found = parser(__doc__, chooses=False)
    found.add_argument("--nets", nargs="+", choices=sorted(NETS), default=list(NETS))
    found.add_argument("--parts", type=at_least_one, nargs="+", default=[1, 2, 4])
    found.add_argument("--most", type=int, default=81, help="parts on the computed panel")
    found.add_argument("--seconds", type=float, default=20.0, help="of one measurement")
    found.add_argument("--small", action="store_true", help="small nets, to try the program")
    found.add_argument("--picture", type=Path, help="default: partition_speedup.png, or as --json")
    options = found.parse_args(arguments)
    all_parts = sorted({1, *options.parts})
    report = Report("partition_speedup", options)
    measured: dict[str, dict[int, float]] = {}
    modelled: dict[str, dict[str, dict[int, float]]] = {}
    for net in options.nets:
        results = compare(report, net, all_parts, options.small, options.seconds)
        if called(1) not in results:
            continue
        measured[net] = speed_ups(results, all_parts)
        step = 1 / statistics.median(figures[RATE] for figures in results[called(1)])
        modelled[net] = computed(*NETS[net](options.small), step, options.most)
        for name, by_parts in modelled[net].items():
            told = "  ".join(f"{parts}: {speedup:.2f}" for parts, speedup in by_parts.items())
            print(f"  computed, {name}\n    {told}", flush=True)
        report.keep("computed", modelled)
    if measured:
        picture = options.picture or (options.json or Path("partition_speedup")).with_suffix(".png")
        draw(picture, measured, modelled, len(os.sched_getaffinity(0)))
        print(f"picture: {picture}")
    report.end()


if __name__ == "__main__":
    main()
