"""Labelled examples of the comparisons of accuracy: images of 28 by 28, and frames of speech.

Every task has its examples twice: as Zarr stores, and as arrays that the peers load.
"""

import gzip
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

import dbdask
from benchmarks._nets import Net
from benchmarks.speech_accuracy import corpus_in, materialised
from pipelines.speech import frames

Labelled = tuple[np.ndarray, np.ndarray]  # inputs (n, features), labels (n,)

PACKAGE = "dataset-fashion-mnist"  # of Debian
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "held_out": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
DIGITS = "scikit-learn's digits instead of Fashion-MNIST, to try the program"  # of an option
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dbdask"


@dataclass(frozen=True)
class Task:
    """A net, and the examples to train it on and to score it with."""

    name: str
    net: Net
    folder: Path
    train: dbdask.Examples
    held_out: dbdask.Examples

    def network(self) -> dbdask.Network:
        """Return the net for the examples, whose inputs may have several dimensions."""
        return self.net.network(self.train.input_shape)

    def arrays(self, part: str) -> Labelled:
        """Return the float32 inputs and int64 labels of "train" or "held_out"."""
        return arrays_in(self.folder, part)


def arrays_in(folder: Path, part: str) -> Labelled:
    """Return the arrays that were kept in a folder."""
    return np.load(folder / f"{part}_inputs.npy"), np.load(folder / f"{part}_labels.npy")


def keep_arrays(folder: Path, part: str, inputs: np.ndarray, labels: np.ndarray) -> None:
    """Keep arrays where processes find them."""
    np.save(folder / f"{part}_inputs.npy", inputs.astype(np.float32))
    np.save(folder / f"{part}_labels.npy", labels.astype(np.int64))


def fashion_mnist(cache: Path = CACHE) -> dict[str, Labelled] | None:
    """Return Fashion-MNIST's pixels from 0 to 1 and labels, out of Debian's package.

    The package is downloaded once, and unpacked into `cache` without being installed. None where
    that is not possible.
    """
    folder = cache / PACKAGE / "usr/share/datasets/fashion-mnist"
    if not folder.exists() and not _unpacked(cache / PACKAGE):
        return None
    parts = {}
    for part, (images, labels) in FILES.items():
        pixels = np.frombuffer(gzip.decompress((folder / images).read_bytes()), np.uint8, offset=16)
        classes = np.frombuffer(gzip.decompress((folder / labels).read_bytes()), np.uint8, offset=8)
        parts[part] = pixels.reshape(-1, 784).astype(np.float32) / 255, classes
    return parts


def _unpacked(folder: Path) -> bool:
    """Download Debian's package, and unpack it; return whether that has succeeded."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=name, capture_output=True, check=False)
        archives = list(Path(name).glob("*.deb"))
        if not archives:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(folder)], check=True)
    return True


def scaled_digits() -> dict[str, Labelled]:
    """Return scikit-learn's digits, scaled up to 28 by 28: 1500 to train on, 297 held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = np.arange(28) * 8 // 28
    images = (found.images[:, rows][:, :, rows] / 16).reshape(-1, 784).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[:1500], order[1500:]
    return {
        "train": (images[train], found.target[train]),
        "held_out": (images[held_out], found.target[held_out]),
    }


def images(folder: Path, hidden: int = 128, *, digits: bool = False) -> Task:
    """Return the task of images: Fashion-MNIST, or the digits.

    The digits are taken if they are asked for, or if Fashion-MNIST cannot be had.
    """
    parts, name = None if digits else fashion_mnist(), "Fashion-MNIST"
    if parts is None:
        parts, name = scaled_digits(), "digits scaled to 28 x 28"
    stores = {}
    for part, (inputs, labels) in parts.items():
        keep_arrays(folder, part, inputs, labels)
        data = xr.Dataset({"x": (("row", "pixel"), inputs), "label": ("row", labels)})
        data.chunk({"row": 2048}).to_zarr(folder / f"{part}.zarr", consolidated=False)
        stores[part] = dbdask.Examples(
            folder / f"{part}.zarr", inputs="x", targets="label", along="row"
        )
    rows = len(parts["train"][0])
    net = Net(784, (hidden,), 10, 128, rows, "relu")
    return Task(name, net, folder, stores["train"], stores["held_out"])


def speech(client: Client, folder: Path, minutes: float) -> Task:
    """Return the task of speech: the phoneme of a frame out of 11 frames of synthesised speech."""
    corpus = corpus_in(client, folder, minutes)
    train = frames(corpus.train).standardize(client=client)
    held_out = frames(corpus.held_out)
    keep_arrays(folder, "train", *materialised(train))
    keep_arrays(folder, "held_out", *materialised(held_out.prepared_like(train)))
    net = Net(440, (256, 256), len(corpus.phonemes), 128, len(train), "sigmoid")
    return Task(f"speech, {minutes:g} minutes", net, folder, train, held_out)
