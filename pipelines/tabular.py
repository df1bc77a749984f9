"""Tabular: from a table of numbers, categories and gaps to calibrated probabilities of rare events.

    python -m pipelines.tabular                             # which flights come two hours late
    python -m pipelines.tabular --table "sales-*.csv" --target returned --positive yes
    python -m pipelines.tabular --table s3.parquet --target late --scheduler tcp://scheduler:8786

The table goes through dask.dataframe into Zarr, and from there through a network. scikit-learn's
MLPClassifier learns from the same rows beside it.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

import dbdask
from pipelines import flights
from pipelines.calibration import draw, scores, without_weights
from pipelines.command_line import cluster, hidden_layers, optimizer, say
from pipelines.tables import Encoding, columns_of, learn_encoding, read_table, write_arrays

OURS, THEIRS = "dbdask", "scikit-learn's MLPClassifier"


@dataclass(frozen=True)
class Table:
    """The two stores of a table's rows, and what is known of them."""

    train: Path
    held_out: Path
    encoding: Encoding
    ratio: float
    """How many times an example of the rare class counts."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    found = argparse.ArgumentParser("pipelines.tabular", description=__doc__.split("\n")[0])
    found.add_argument("--table", help="Parquet or CSV files; default: flights of 2013")
    found.add_argument("--target", help="the column to predict")
    found.add_argument("--positive", default="1", help="its value in the rare class")
    found.add_argument(
        "--categories", nargs="*", default=[], help="columns of numbers that are categories"
    )
    found.add_argument("--leave-out", nargs="*", default=[], help="columns that are not used")
    found.add_argument("--held-out", type=float, default=0.25, help="share of the rows")
    found.add_argument(
        "--weight",
        type=float,
        help="of an example of the rare class; default: both classes weigh the same",
    )
    found.add_argument("--layers", default="2x64", help="hidden layers, as COUNTxUNITS")
    found.add_argument("--optimizer", default="adam:0.001", help="NAME:RATE")
    found.add_argument("--epochs", type=int, default=10)
    found.add_argument("--batch-size", type=int, default=256)
    found.add_argument("--replicas", type=int, help="default: one for each worker")
    found.add_argument("--scheduler", help="address; default: two processes of this machine")
    found.add_argument("--output", type=Path, default=Path("demo-tabular"))
    found.add_argument("--seed", type=int, default=0)
    return found


def prepare(options: argparse.Namespace) -> Table:
    """Write the rows to train on, and those held out, to Zarr."""
    folder: Path = options.output
    pattern, target, categories = options.table, options.target, options.categories
    if pattern is None:
        say("reading the flights of 2013")
        pattern = str(flights.write_flights(folder / "flights.parquet"))
        target, categories = flights.TARGET, flights.CATEGORIES
    table = read_table(pattern).drop(columns=list(options.leave_out))
    if target not in table.columns:
        raise SystemExit(f"--target must be one of {list(table.columns)}, got {target!r}")
    rows, share = table.dropna(subset=[target]), options.held_out
    train, held_out = rows.random_split([1 - share, share], random_state=options.seed)
    encoding = learn_encoding(train, target, options.positive, categories)
    ratio = options.weight or (1 - encoding.share) / encoding.share
    paths = folder / "train.zarr", folder / "held_out.zarr"
    for part, path in zip((train, held_out), paths, strict=True):
        write_arrays(part, encoding, path, (1.0, ratio))
    return Table(*paths, encoding, ratio)


def rows_of(path: Path, encoding: Encoding) -> dbdask.Examples:
    """Describe what is an example: a row, with its numbers, gaps and categories in one vector."""
    return dbdask.Examples(
        path,
        inputs=[name for name, columns in columns_of(encoding).items() if columns],
        targets="target",
        along="row",
        weights="weight",
        classes=[0, 1],
        missing="mask",
    )


def train(client: Client, examples: dbdask.Examples, options: argparse.Namespace) -> dbdask.Result:
    """Train the network on the rows."""
    hidden = [dbdask.Dense(units, "relu") for units in hidden_layers(options.layers)]
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[*hidden, dbdask.Dense(2)], loss="softmax"
    )
    say(f"training {model.parameter_count:,} parameters on {len(examples):,} rows")
    return dbdask.downpour(
        model,
        examples,
        client=client,
        optimizer=optimizer(options.optimizer),
        epochs=options.epochs,
        batch_size=options.batch_size,
        replicas=options.replicas,
        seed=options.seed,
    )


def beside(
    examples: dbdask.Examples, held_out: dbdask.Examples, options: argparse.Namespace
) -> np.ndarray:
    """Return what scikit-learn's network predicts for the held-out rows: (rows,).

    It gets the rows as the network of dbdask gets them, with the same weights, hidden layers,
    batch size and number of epochs.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    inputs, targets, weights = examples.batch(len(examples))
    model = MLPClassifier(
        hidden_layers(options.layers),
        batch_size=options.batch_size,
        max_iter=options.epochs,
        alpha=0.0,
        random_state=options.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after as many epochs
        model.fit(inputs, targets, sample_weight=weights)
    given = held_out.prepared_like(examples).batch(len(held_out)).inputs
    return np.asarray(model.predict_proba(given)[:, 1])


def report(found: dict[str, dict[str, float]], share: float) -> str:
    """Return the scores of the models as a table."""
    names = list(next(iter(found.values())))
    lines = [f"{'':30}" + "".join(f"{name:>20}" for name in names)]
    lines += [
        f"{model:30}" + "".join(f"{values[name]:20.4f}" for name in names)
        for model, values in found.items()
    ]
    return "\n".join([f"Held-out rows, {share:.1%} of them in the rare class:", *lines])


def summary(folder: Path) -> str:
    """Return what the program leaves, and the lines that load it."""
    return f"""
  {folder / "train.zarr"}, {folder / "held_out.zarr"}    numbers, gaps and categories
  {folder / "model.zarr"}    the trained model, which takes such stores
  {folder / "probabilities.zarr"}    predicted probabilities of the held-out rows
  {folder / "calibration.png"}    whether events come as often as predicted

Load them with:
  import dbdask, xarray as xr
  model = dbdask.load("{folder / "model.zarr"}")
  probability = xr.open_zarr("{folder / "probabilities.zarr"}", consolidated=False)["target"]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline from end to end."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if (options.table is None) != (options.target is None):
        raise SystemExit("--table and --target belong together: give both, or none")
    hidden_layers(options.layers)
    optimizer(options.optimizer)
    began, folder = time.monotonic(), options.output
    with cluster(options.scheduler) as client:
        table = prepare(options)
        say(f"the rows are in {folder} after {time.monotonic() - began:.0f} s")
        examples = rows_of(table.train, table.encoding)
        examples = examples.standardize(per="feature", client=client)
        held_out = rows_of(table.held_out, table.encoding)
        result = train(client, examples, options)
        say(f"trained after {time.monotonic() - began:.0f} s: {result.status.message}")
        predicted = result.predict_proba(table.held_out)
        predicted.to_zarr(folder / "probabilities.zarr", mode="w", consolidated=False)
    result.save(folder / "model.zarr", overwrite=True)
    stored = xr.open_zarr(folder / "probabilities.zarr", consolidated=False)
    targets = xr.open_zarr(table.held_out, consolidated=False)["target"].values
    ours = stored["target"].sel({"class": 1}).values
    found = {OURS: ours, THEIRS: beside(examples, held_out, options)}
    found = {name: without_weights(p, table.ratio) for name, p in found.items()}
    draw(folder / "calibration.png", targets, found)
    say(report({name: scores(targets, p) for name, p in found.items()}, targets.mean()))
    say(summary(folder))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
