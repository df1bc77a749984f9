"""What it costs that labels are sorted in the store, against a fully shuffled copy.

    python -m benchmarks.sorted_labels [--rows 60000] [--seeds 3]

60,000 x 784 float32 (180 MiB, three times what is shuffled together), 10 classes that overlap,
chunks of 1,000 rows, two replicas in two processes. The held-out examples are the same.
"""

import argparse
import statistics
import tempfile

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import dbdask

FEATURES, CLASSES = 784, 10


def draw(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping Gaussian classes: no classifier is right everywhere."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES)) * 0.11
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=rows)
    inputs = rng.normal(size=(rows, FEATURES)) + centres[labels]
    return inputs.astype(np.float32), labels.astype(np.int16)


def write(path: str, inputs: np.ndarray, labels: np.ndarray) -> str:
    data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
    encoding = {"x": {"chunks": (1000, FEATURES)}, "label": {"chunks": (1000,)}}
    data.to_zarr(path, consolidated=False, encoding=encoding)
    return path


def accuracy(client: Client, path: str, held_out: str, seed: int) -> float:
    def examples(path: str) -> dbdask.Examples:
        return dbdask.Examples(path, inputs="x", targets="label", along="row")

    model = dbdask.Network(
        input_shape=(FEATURES,),
        layers=[dbdask.Dense(128, "relu"), dbdask.Dense(CLASSES)],
        loss="softmax",
    )
    result = dbdask.downpour(
        model,
        examples(path),
        client=client,
        optimizer=dbdask.adagrad(0.01),
        epochs=3,
        seed=seed,
        progress=False,
    )
    return result.evaluate(examples(held_out))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    inputs, labels = draw(options.rows, 1)
    order = np.argsort(labels, kind="stable")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        stores = {
            "sorted": write(f"{folder}/sorted.zarr", inputs[order], labels[order]),
            "shuffled": write(f"{folder}/shuffled.zarr", inputs, labels),
        }
        held_out = write(f"{folder}/held_out.zarr", *draw(10_000, 2))
        medians = {}
        for name, path in stores.items():
            found = [accuracy(client, path, held_out, seed) for seed in range(options.seeds)]
            medians[name] = statistics.median(found)
            print(f"{name:9} median {medians[name]:.4f}  {[round(a, 4) for a in found]}")
        print(f"sorted - shuffled: {100 * (medians['sorted'] - medians['shuffled']):+.2f} points")


if __name__ == "__main__":
    main()
