"""Speech: from sound to a trained phoneme classifier, and its predictions in Zarr.

    python -m pipelines.speech                            # synthesised speech, two processes
    python -m pipelines.speech --timit DIR --layers 4x2560 --scheduler tcp://scheduler:8786
    python -m pipelines.speech --method sandblaster --start demo/model.zarr

Every frame is 40 log energies; the network sees 11 frames, and names the phoneme in the middle.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distributed import Client

import dbdask
from pipelines.command_line import cluster, hidden_layers, optimizer, say
from pipelines.corpus import Corpus, build, recorded, synthesised


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    found = argparse.ArgumentParser("pipelines.speech", description=__doc__.split("\n")[0])
    found.add_argument("--minutes", type=float, default=45.0, help="of speech to synthesise")
    found.add_argument("--timit", type=Path, help="a folder of NAME.wav beside NAME.PHN instead")
    found.add_argument("--layers", default="2x256", help="hidden layers, as COUNTxUNITS")
    found.add_argument("--optimizer", default="adagrad:0.03", help="NAME:RATE")
    found.add_argument("--method", choices=("downpour", "sandblaster"), default="downpour")
    found.add_argument("--epochs", type=int, default=8, help="of downpour")
    found.add_argument("--iterations", type=int, default=60, help="of sandblaster")
    found.add_argument("--l2", type=float, default=1e-5, help="penalty of sandblaster")
    found.add_argument("--start", type=Path, help="a saved model whose parameters to start from")
    found.add_argument("--batch-size", type=int, default=128)
    found.add_argument("--replicas", type=int, help="default: one for each worker")
    found.add_argument("--scheduler", help="address; default: two processes of this machine")
    found.add_argument("--output", type=Path, default=Path("demo"))
    found.add_argument("--seed", type=int, default=0)
    return found


def network(layers: str, input_shape: tuple[int, ...], outputs: int) -> dbdask.Network:
    """Return the network of `--layers`: sigmoids, and a softmax over the phonemes."""
    hidden = [dbdask.Dense(units, "sigmoid") for units in hidden_layers(layers)]
    return dbdask.Network(
        input_shape=input_shape, layers=[*hidden, dbdask.Dense(outputs)], loss="softmax"
    )


def frames(path: Path) -> dbdask.Examples:
    """Describe what is an example: 11 frames of one utterance, and the phoneme in the middle."""
    return dbdask.Examples(
        path,
        inputs="log_energy",
        targets="phoneme",
        along="frame",
        window={"frame": 11},
        groups="utterance",
    )


def train(client: Client, corpus: Corpus, options: argparse.Namespace) -> dbdask.Result:
    """Train on the corpus by the method that was asked for."""
    examples = frames(corpus.train).standardize(client=client)
    held_out = frames(corpus.held_out)
    model = network(options.layers, examples.input_shape, len(corpus.phonemes))
    say(
        f"training {model.parameter_count:,} parameters on {len(examples):,} frames "
        f"({len(corpus.phonemes)} phonemes), holding out {len(held_out):,}"
    )
    start = dbdask.load(options.start).parameters if options.start else None
    if options.method == "sandblaster":
        return dbdask.sandblaster(
            model,
            examples,
            client=client,
            parameters=start,
            iterations=options.iterations,
            l2=options.l2,
            replicas=options.replicas,
            validation=held_out,
            validate_every=5,
            callbacks=[report_validation],
            seed=options.seed,
        )
    return dbdask.downpour(
        model,
        examples,
        client=client,
        parameters=start,
        optimizer=optimizer(options.optimizer),
        epochs=options.epochs,
        batch_size=options.batch_size,
        replicas=options.replicas,
        validation=held_out,
        callbacks=[report_validation],
        seed=options.seed,
    )


def report_validation(record: dbdask.Record) -> None:
    """Say how the held-out frames fare, whenever that is known."""
    if record.validation_accuracy == record.validation_accuracy:
        say(
            f"pass {record.epoch + 1}: held-out frame accuracy "
            f"{record.validation_accuracy:.3f} after {record.seconds:.0f} s"
        )


def summary(options: argparse.Namespace, corpus: Corpus, scores: dict[str, float]) -> str:
    """Return what the program leaves, and the lines that load it."""
    folder = options.output
    return f"""
Held-out frame accuracy: {scores["accuracy"]:.1%} (loss {scores["loss"]:.3f})

  {corpus.train}, {corpus.held_out}    features and phonemes
  {folder / "model.zarr"}    the trained model
  {folder / "phonemes.zarr"}    predicted phonemes of the held-out speech
  {folder / "learning_curve.png"}    how it learnt

Load them with:
  import dbdask, xarray as xr
  model = dbdask.load("{folder / "model.zarr"}")
  predicted = xr.open_zarr("{folder / "phonemes.zarr"}", consolidated=False)["phoneme"]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline from end to end."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    network(options.layers, (11, 40), 2)
    optimizer(options.optimizer)
    began = time.monotonic()
    with cluster(options.scheduler) as client:
        if options.timit is not None:
            train_parts, held_out_parts = recorded(options.timit)
        else:
            say(f"synthesising {options.minutes:g} minutes of speech")
            train_parts, held_out_parts = synthesised(options.minutes, options.seed)
        corpus = build(client, train_parts, held_out_parts, options.output)
        say(f"features are in {options.output} after {time.monotonic() - began:.0f} s")
        result = train(client, corpus, options)
        scores = result.evaluate(frames(corpus.held_out))
        predicted = result.predict(corpus.held_out)
        predicted.to_zarr(options.output / "phonemes.zarr", mode="w", consolidated=False)
    result.save(options.output / "model.zarr", overwrite=True)
    result.plot().savefig(options.output / "learning_curve.png", dpi=120)
    say(summary(options, corpus, scores))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
