"""Sandblaster on softmax regression, against SciPy's L-BFGS-B in float64.

    python -m benchmarks.sandblaster_convergence [--rows 60000] [--workers 4] [--shards 3]

From zeros, history 10. SciPy runs to ftol=1e-15; its last value is the reference. For both: the
evaluations after which the loss is first within 1e-6 of it, relatively.
"""

import argparse
import tempfile
import time

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster
from scipy.optimize import minimize
from scipy.special import logsumexp

import dbdask

FEATURES, CLASSES = 784, 10
CLOSE = 1e-6
BOUND = 1.2  # times the evaluations that SciPy needs to come as close


def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of blurred prototypes: correlated columns, of unlike scales, some always zero."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(40, FEATURES)) * np.geomspace(1, 0.05, 40)[:, None]
    labels = rng.integers(CLASSES, size=rows)
    prototypes = rng.normal(size=(CLASSES, 40))
    inputs = (0.7 * prototypes[labels] + rng.normal(size=(rows, 40))) @ basis / 6
    inputs += 0.1 * rng.normal(size=inputs.shape)
    inputs[:, ::13] = 0
    return np.clip(inputs, 0, None).astype(np.float32), labels.astype(np.int16)


def scipy_values(inputs: np.ndarray, labels: np.ndarray, l2: float) -> list[float]:
    """The objective at every evaluation of SciPy."""
    values: list[float] = []
    x = inputs.astype(np.float64)
    rows = np.arange(len(x))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat[: CLASSES * FEATURES].reshape(CLASSES, FEATURES)
        outputs = x @ weights.T + flat[CLASSES * FEATURES :]
        logs = outputs - logsumexp(outputs, axis=1, keepdims=True)
        upstream = np.exp(logs)
        upstream[rows, labels] -= 1
        upstream /= len(x)
        gradient = np.concatenate([(upstream.T @ x).ravel(), upstream.sum(axis=0)])
        values.append(-logs[rows, labels].mean() + l2 / 2 * flat @ flat)
        return values[-1], gradient + l2 * flat

    start = np.zeros(CLASSES * FEATURES + CLASSES)
    options = {"maxcor": 10, "ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 10000}
    minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return values


def first_within(values: list[float], evaluations: list[int], best: float) -> int | None:
    for value, evaluation in zip(values, evaluations, strict=True):
        if value - best <= CLOSE * abs(best):
            return evaluation
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--shards", type=int, default=3)
    options = parser.parse_args()
    inputs, labels = draw(options.rows)
    data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
    model = dbdask.Network(input_shape=(FEATURES,), layers=[dbdask.Dense(CLASSES)], loss="softmax")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        path = f"{folder}/store.zarr"
        encoding = {"x": {"chunks": (2000, FEATURES)}, "label": {"chunks": (2000,)}}
        data.to_zarr(path, consolidated=False, encoding=encoding)
        examples = dbdask.Examples(path, inputs="x", targets="label", along="row")
        for l2 in (1e-2, 1e-3, 1e-4):
            reference = scipy_values(inputs, labels, l2)
            best = min(reference)
            theirs = first_within(reference, list(range(1, len(reference) + 1)), best)
            began = time.perf_counter()
            result = dbdask.sandblaster(
                model,
                examples,
                client=client,
                parameters=np.zeros(model.parameter_count, np.float32),
                iterations=1000,
                tolerance=1e-7,
                l2=l2,
                shards=options.shards,
                progress=False,
            )
            seconds = time.perf_counter() - began
            history = result.history
            losses = history["loss"].values.tolist()
            evaluations = history["evaluations"].values.astype(int).tolist()
            ours = first_within(losses, evaluations, best)
            assert theirs and ours, f"l2={l2:g}: never within {CLOSE:g} of SciPy's loss"
            print(
                f"l2={l2:g}: SciPy {best:.9f} in {len(reference)} evaluations, within 1e-6 after "
                f"{theirs}; Sandblaster {min(losses):.9f} "
                f"({(min(losses) - best) / best:+.1e}), within 1e-6 after {ours}: "
                f"ratio {ours / theirs:.2f}; "
                f"{result.status.reason}, {evaluations[-1]} evaluations in {seconds:.1f} s "
                f"({1000 * seconds / evaluations[-1]:.0f} ms each)",
                flush=True,
            )
            assert ours <= BOUND * theirs, f"more than {BOUND} times SciPy's evaluations"


if __name__ == "__main__":
    main()
