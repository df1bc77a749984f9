"""Held-out frame accuracy of Downpour against scikit-learn's MLPClassifier on the same frames.

    python -m benchmarks.speech_accuracy [--minutes 45] [--epochs 8] [--seeds 3]

Both train two hidden layers of 256 sigmoids on the same standardised frames, for the same number
of epochs, with minibatches of 128. Downpour runs two replicas in two worker processes;
scikit-learn runs Adam, and its rate is the best of three by held-out accuracy of the first seed.
Held-out frames are sentences that were not trained on, spoken by voices that were not trained on.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster
from sklearn.neural_network import MLPClassifier

import dbdask
from pipelines.corpus import Corpus, build, synthesised
from pipelines.speech import frames, network, optimizer

PEER_RATES = (3e-4, 1e-3, 3e-3)


def corpus_in(client: Client, folder: Path, minutes: float) -> Corpus:
    """Synthesise the corpus."""
    train, held_out = synthesised(minutes, 0)
    return build(client, train, held_out, folder)


def materialised(examples: dbdask.Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return every input, flattened, and every label."""
    inputs, labels = [], []
    with examples.reader() as reader:
        for portion in examples.cut(8192, 8192).contiguous():
            for batch in reader.minibatches(portion, 8192):
                inputs.append(batch.inputs.reshape(len(batch.inputs), -1))
                labels.append(batch.targets)
    return np.concatenate(inputs), np.concatenate(labels)


def ours(
    client: Client, corpus: Corpus, rule: str, layers: str, epochs: int, seed: int
) -> tuple[float, float]:
    """Return the held-out accuracy of two replicas, and the seconds of training."""
    train = frames(corpus.train).standardize(client=client)
    model = network(layers, train.input_shape, len(corpus.phonemes))
    began = time.perf_counter()
    result = dbdask.downpour(
        model,
        train,
        client=client,
        optimizer=optimizer(rule),
        epochs=epochs,
        batch_size=128,
        replicas=2,
        progress=False,
        seed=seed,
    )
    seconds = time.perf_counter() - began
    return result.evaluate(frames(corpus.held_out))["accuracy"], seconds


def peer(
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    layers: str,
    rate: float,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Return the held-out accuracy of scikit-learn's network, and the seconds of training."""
    count, _, units = layers.partition("x")
    model = MLPClassifier(
        (int(units),) * int(count),
        activation="logistic",
        batch_size=128,
        learning_rate_init=rate,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs,
        random_state=seed,
    )
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged: the epochs are given
        model.fit(*train)
    seconds = time.perf_counter() - began
    return float(model.score(*held_out)), seconds


def report(name: str, runs: list[tuple[float, float]]) -> float:
    """Print accuracies and their median, which is returned."""
    accuracies = [accuracy for accuracy, _ in runs]
    shown = ", ".join(f"{accuracy:.4f} in {seconds:.0f} s" for accuracy, seconds in runs)
    median = statistics.median(accuracies)
    print(f"  {name:28} median {median:.4f}   ({shown})", flush=True)
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--layers", default="2x256")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", default="adagrad:0.03")
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    options = parser.parse_args()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        corpus = corpus_in(client, options.folder, options.minutes)
        examples = frames(corpus.train).standardize(client=client)
        print(f"{len(examples):,} training frames, {len(corpus.phonemes)} phonemes", flush=True)
        own = [
            ours(client, corpus, options.optimizer, options.layers, options.epochs, seed)
            for seed in range(options.seeds)
        ]
        mine = report(f"downpour {options.optimizer}", own)
    train = materialised(examples)
    held_out = materialised(frames(corpus.held_out).prepared_like(examples))
    first = {}
    for rate in PEER_RATES:
        first[rate] = peer(train, held_out, options.layers, rate, options.epochs, 0)
        report(f"scikit-learn adam {rate:g}", [first[rate]])
    best = max(first, key=lambda rate: first[rate][0])
    rest = [
        peer(train, held_out, options.layers, best, options.epochs, seed)
        for seed in range(1, options.seeds)
    ]
    theirs = report(f"scikit-learn adam {best:g}", [first[best], *rest])
    print(f"  downpour - scikit-learn: {100 * (mine - theirs):+.2f} points")


if __name__ == "__main__":
    main()
