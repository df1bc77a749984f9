"""keep="best" when shards are lost: the result is a point that validation scored, whole."""

import numpy as np
import pytest
import xarray as xr
from acting import SlowUntil, touch
from test_downpour import assert_nothing_left, labelled, network, write_store
from test_recovery import cluster, kill_a_shard  # noqa: F401  (a fixture)

import dbdask

ADAGRAD = {"batch_size": 20, "optimizer": dbdask.adagrad(0.05)}
ALGORITHMS = {  # with when a process slows down, before three validations have ended; by how much
    "downpour": (dbdask.downpour, "epochs", ADAGRAD, 60, 0.1),
    "sandblaster": (dbdask.sandblaster, "iterations", {"tolerance": 0.0}, 5, 0.4),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("best") / "store.zarr")


@pytest.fixture(scope="module")
def misled(store, tmp_path_factory):
    """Examples whose labels are others than the trained ones: the loss on them grows."""
    data = xr.open_zarr(store, consolidated=False).load().isel(row=slice(1000, 1200))
    data["label"] = (data["label"] + 1) % 3
    path = str(tmp_path_factory.mktemp("best") / "misled.zarr")
    data.drop_encoding().to_zarr(path, consolidated=False)
    return labelled(path)


def train(client, store, algorithm, number, *, until=None, **options):
    """Train a network; once it is under way it takes its time until there is a file."""
    call, length, settings, minibatches, seconds = ALGORITHMS[algorithm]
    settings = settings | {length: number, "shards": 2, "keep": "best", "progress": False}
    model = SlowUntil(network(), until, minibatches, seconds)
    return call(model, labelled(store), client=client, **settings | options)


def scored(result):
    """The validation losses, and how many shards had been lost when each was recorded."""
    history = result.history
    rows = np.isfinite(history["validation_loss"].values)
    return history["validation_loss"].values[rows], history["lost"].values[rows]


def killing(client, validations, over):
    """A callback that kills a shard's worker at one validation, and then makes a file."""
    seen = []

    def callback(record):
        if np.isfinite(record.validation_loss):
            seen.append(record)
            if len(seen) == validations:
                kill_a_shard(client)
                touch(over)

    return callback


@pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.slow)]
)
def test_a_best_that_no_snapshot_holds_is_chosen_anew(cluster, store, misled, tmp_path, algorithm):  # noqa: F811
    options = {"checkpoint": str(tmp_path / "run.zarr"), "snapshot_every": "1h"}
    over = str(tmp_path / "over")
    options |= {"validation": misled, "callbacks": [killing(cluster, 3, over)]}
    result = train(cluster, store, algorithm, 8, until=over, **options)
    losses, lost = scored(result)
    assert lost[-1] >= 1
    assert result.evaluate(misled)["loss"] == pytest.approx(losses[lost >= 1].min(), rel=1e-5)
    assert_nothing_left(cluster)


@pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.slow)]
)
def test_the_best_goes_back_to_the_snapshots_in_every_shard(cluster, store, tmp_path, algorithm):  # noqa: F811
    held_out = labelled(store).isel(row=slice(1000, 1200))
    options = {"checkpoint": str(tmp_path / "run.zarr"), "snapshot_every": "1h"}
    options["validation"] = held_out
    first = train(cluster, store, algorithm, 2, **options)
    kept = first.evaluate(held_out)["loss"]
    over = str(tmp_path / "over")
    kill = killing(cluster, 3, over)

    def kill_and_stop(record):
        kill(record)
        return record.lost > first.history["lost"].values[-1]

    options["callbacks"] = [kill_and_stop]
    result = train(cluster, store, algorithm, 10, until=over, resume=True, **options)
    losses, lost = scored(result)
    assert losses[lost == 0].min() < kept  # better ones were found, and lost
    after = losses[lost >= 1]
    found = result.evaluate(held_out)["loss"]
    assert found == pytest.approx(min(kept, *after), rel=1e-5)
    assert_nothing_left(cluster)
