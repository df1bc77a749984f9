"""Images: from pictures to a locally connected network, and its predictions in Zarr.

    python -m pipelines.images                               # Fashion-MNIST, two processes
    python -m pipelines.images --idx mnist --epochs 5 --dense
    python -m pipelines.images --folder imagenet --size 100 --partitions 4 --scheduler tcp://...

The network is the paper's in small: three stages of local filters that differ from position to
position, L2 pooling and local contrast normalisation, then one-vs-all logistic outputs. `--dense`
trains a dense network for the same time beside it.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

import dbdask
from pipelines import fashion, idx, picture_files, picture_store
from pipelines.command_line import cluster, hidden_layers, optimizer, say
from pipelines.image_networks import default_stages, dense_network, local_network, stage_of
from pipelines.picture_plots import confusion, draw_confusion, draw_filters
from pipelines.picture_sources import Sets

MOST_NAMED = 5
"""Broken files that are named; all are listed in a file."""
CHUNK = 4096
"""Predictions of a chunk."""


@dataclass(frozen=True)
class Stores:
    """The two stores of pictures, and the names of the classes."""

    train: Path
    held_out: Path
    classes: tuple[str, ...]
    pictures: int
    """To train on, all copies counted."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    found = argparse.ArgumentParser("pipelines.images", description=__doc__.split("\n")[0])
    given = found.add_mutually_exclusive_group()
    given.add_argument("--idx", type=Path, help="a folder of idx files; default: Fashion-MNIST")
    given.add_argument("--folder", type=Path, help="a folder of pictures for each class instead")
    found.add_argument("--class-names", nargs="*", default=[], help="of the labels in idx files")
    found.add_argument("--size", type=int, default=100, help="side of the squares of --folder")
    found.add_argument("--grey", action="store_true", help="read the pictures of --folder as grey")
    found.add_argument("--held-out", type=float, default=0.1, help="share of --folder, if no val")
    found.add_argument(
        "--copies", type=int, default=2, help="of each picture to train on, mirrored or shifted"
    )
    found.add_argument("--stages", nargs="+", help="MAPSxPATCH each; default: by the size")
    found.add_argument("--optimizer", default="adagrad:0.02", help="NAME:RATE")
    found.add_argument(
        "--falling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the rate fall to a hundredth",
    )
    found.add_argument("--epochs", type=int, default=12)
    found.add_argument("--batch-size", type=int, default=128)
    found.add_argument("--replicas", type=int, help="default: one for each gang of workers")
    found.add_argument("--partitions", type=int, default=1, help="workers that share a replica")
    found.add_argument("--workers", type=int, default=2, help="processes of this machine")
    found.add_argument("--scheduler", help="address; default: processes of this machine")
    found.add_argument(
        "--dense", nargs="?", const="2x256", help="COUNTxUNITS of a dense network beside it"
    )
    found.add_argument("--dense-optimizer", default="adagrad:0.02", help="NAME:RATE")
    found.add_argument("--output", type=Path, default=Path("demo-images"))
    found.add_argument("--seed", type=int, default=0)
    return found


def check(options: argparse.Namespace) -> None:
    """Stop before any work if a flag is wrong."""
    for name in ("size", "copies", "epochs", "batch_size", "partitions", "workers"):
        if getattr(options, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise SystemExit(f"{flag} must be at least 1, got {getattr(options, name)}")
    if not 0 < options.held_out < 1:
        raise SystemExit(f"--held-out must be between 0 and 1, got {options.held_out:g}")
    for text in options.stages or ():
        stage_of(text)
    optimizer(options.optimizer)
    optimizer(options.dense_optimizer)
    if options.dense:
        hidden_layers(options.dense)


def sources(options: argparse.Namespace) -> Sets:
    """Return the pictures that were asked for."""
    try:
        if options.folder is not None:
            channels = 1 if options.grey else 3
            return picture_files.sets_of(
                options.folder, options.size, channels, options.held_out, options.seed
            )
        if options.idx is not None:
            return idx.sets_of(options.idx, options.class_names)
        return idx.sets_of(fashion.folder(), fashion.CLASSES)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


def store(client: Client, sets: Sets, options: argparse.Namespace) -> Stores:
    """Write the pictures to Zarr on the cluster, and say which could not be read."""
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.zarr", folder / "held_out.zarr"
    written = [
        picture_store.write(client, pictures, path, sets.classes, copies, options.seed)
        for pictures, path, copies in zip(
            (sets.train, sets.held_out), paths, (options.copies, 1), strict=True
        )
    ]
    broken = [line for one in written for line in one.broken]
    if broken:
        count = len(sets.train) + len(sets.held_out)
        say(f"skipped {len(broken)} of {count:,} files, which cannot be read as pictures:")
        for name, why in broken[:MOST_NAMED]:
            say(f"  {name}: {why}")
        listed = folder / "broken.txt"
        listed.write_text("".join(f"{name}\t{why}\n" for name, why in broken))
        if len(broken) > MOST_NAMED:
            say(f"  and {len(broken) - MOST_NAMED} more: all are in {listed}")
    return Stores(*paths, sets.classes, written[0].pictures)


def examples_of(path: Path) -> dbdask.Examples:
    """Describe what is an example: a picture, and the class that it shows."""
    return dbdask.Examples(path, inputs="pixels", targets="label", along="image")


def train(
    client: Client,
    model: dbdask.Network,
    stores: Stores,
    options: argparse.Namespace,
    *,
    rule: str,
    epochs: int,
    callbacks: Sequence[Callable[[dbdask.Record], None]] = (),
    partitions: int = 1,
) -> dbdask.Result:
    """Train a network on the pictures, standardised by their mean and deviation."""
    steps = epochs * -(-stores.pictures // options.batch_size)
    return dbdask.downpour(
        model,
        examples_of(stores.train).standardize(client=client),
        client=client,
        optimizer=optimizer(rule, steps=steps if options.falling else None),
        epochs=epochs,
        batch_size=options.batch_size,
        replicas=options.replicas,
        partitions=partitions,
        validation=examples_of(stores.held_out),
        callbacks=callbacks,
        seed=options.seed,
    )


def report_validation(record: dbdask.Record) -> None:
    """Say how the held-out pictures fare, whenever that is known."""
    if record.validation_accuracy == record.validation_accuracy:
        say(
            f"pass {record.epoch + 1}: held-out accuracy {record.validation_accuracy:.4f} "
            f"after {record.seconds:.0f} s"
        )


def seconds_of(result: dbdask.Result) -> float:
    """Return how long a run has trained."""
    return float(result.history["seconds"].values[-1])


def train_beside(
    client: Client, stores: Stores, seconds: float, options: argparse.Namespace
) -> dbdask.Result:
    """Train the dense network for about as many seconds as the other one has taken.

    A first epoch, which is thrown away, tells how many there is time for.
    """
    shape = examples_of(stores.train).input_shape
    model = dense_network(shape, hidden_layers(options.dense), len(stores.classes))
    rule = options.dense_optimizer
    tried = train(client, model, stores, options, rule=rule, epochs=1)
    epochs = max(1, round(seconds / seconds_of(tried)))
    say(f"training {model.parameter_count:,} parameters of dense layers for {epochs} passes")
    return train(client, model, stores, options, rule=rule, epochs=epochs)


def write_predictions(result: dbdask.Result, stores: Stores, path: Path) -> xr.Dataset:
    """Write the predicted label and class of each held-out picture; return them with the truth."""
    held_out = xr.open_zarr(stores.held_out, consolidated=False)
    label = result.predict(stores.held_out).compute()
    names = np.array(stores.classes, dtype=object)
    predicted = xr.Dataset(
        {
            "label": label.assign_attrs(held_out["label"].attrs),
            "class_name": ("image", names[np.asarray(label)]),
            "file": held_out["file"].astype(object).compute(),
        }
    )
    chunks = {name: {"chunks": (CHUNK,)} for name in predicted}
    predicted.to_zarr(path, mode="w", consolidated=False, encoding=chunks)
    return predicted.assign(truth=held_out["label"].compute())


def summary(options: argparse.Namespace, stores: Stores) -> str:
    """Return what the program leaves, and the lines that load it."""
    folder = options.output
    return f"""
  {stores.train}, {stores.held_out}    pictures and labels
  {folder / "model.zarr"}    the trained model
  {folder / "classes.zarr"}    the predicted class of each held-out picture
  {folder / "confusion.png"}    which classes it takes for which
  {folder / "filters.png"}    what its first filters look for
  {folder / "learning_curve.png"}    how it learnt

Load them with:
  import dbdask, xarray as xr
  model = dbdask.load("{folder / "model.zarr"}")
  predicted = xr.open_zarr("{folder / "classes.zarr"}", consolidated=False)["class_name"]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline from end to end."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check(options)
    began, folder = time.monotonic(), options.output
    sets = sources(options)
    shape = sets.train.shape
    stages = options.stages or default_stages(min(shape[:2]))
    model = local_network(shape, stages, len(sets.classes))
    with cluster(options.scheduler, options.workers) as client:
        stores = store(client, sets, options)
        say(f"the pictures are in {folder} after {time.monotonic() - began:.0f} s")
        say(
            f"training {model.parameter_count:,} parameters on {stores.pictures:,} pictures "
            f"({len(stores.classes)} classes), holding out {len(examples_of(stores.held_out)):,}"
        )
        result = train(
            client,
            model,
            stores,
            options,
            rule=options.optimizer,
            epochs=options.epochs,
            callbacks=[report_validation],
            partitions=options.partitions,
        )
        found = {"locally connected": result}
        if options.dense:
            found["dense"] = train_beside(client, stores, seconds_of(result), options)
        scores = {name: of.evaluate(examples_of(stores.held_out)) for name, of in found.items()}
        predicted = write_predictions(result, stores, folder / "classes.zarr")
    result.save(folder / "model.zarr", overwrite=True)
    counts = confusion(predicted["truth"].values, predicted["label"].values, len(stores.classes))
    draw_confusion(folder / "confusion.png", counts, stores.classes)
    weights = result.parameters[f"{model.stages[0].name}_weights"].values
    start = model.initial_parameters(options.seed, 0, weights.size)
    draw_filters(folder / "filters.png", weights, start.reshape(weights.shape))
    result.plot().savefig(folder / "learning_curve.png", dpi=120)
    for name, score in scores.items():
        say(
            f"Held-out accuracy, {name}: {score['accuracy']:.2%} "
            f"(loss {score['loss']:.3f}) after {seconds_of(found[name]):.0f} s of training"
        )
    say(summary(options, stores))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
