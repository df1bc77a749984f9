"""What an older version wrote still loads: a saved model and checkpoints, kept in the repository.

Version 0.1.0 wrote `model` and `run` when update rules had names and networks knew `Dense` alone.
It wrote `best_run` and `batch_run` when Downpour and Sandblaster had a run of their own each.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dbdask

WRITTEN = Path(__file__).parent / "written_before"


def examples(path):
    """The data that both are of: 400 rows, 5 features, 3 classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(400, 5)).astype(np.float32)
    label = (x @ rng.normal(size=(5, 3))).argmax(axis=1)
    data = xr.Dataset({"x": (("row", "feature"), x), "label": ("row", label)})
    data.chunk(row=100).to_zarr(path, consolidated=False)
    return dbdask.Examples(path, inputs="x", targets="label", along="row").standardize()


def network():
    return dbdask.Network(
        input_shape=5, layers=[dbdask.Dense(4, "tanh"), dbdask.Dense(3)], loss="softmax"
    )


def train(client, given, **options):
    return dbdask.downpour(
        network(),
        given,
        client=client,
        optimizer=dbdask.adagrad(0.1),
        batch_size=20,
        replicas=1,
        shards=2,
        epochs=2,
        progress=False,
        **options,
    )


def test_a_saved_model_loads_and_scores_as_it_did(tmp_path):
    result = dbdask.load(WRITTEN / "model")
    assert result.model == network() and result.status.reason == "epochs"
    scores = result.evaluate(examples(tmp_path / "data.zarr"))
    assert scores["loss"] == pytest.approx(0.33213512, rel=1e-4) and scores["accuracy"] == 0.9


def test_a_checkpoint_resumes_and_ends_where_an_unbroken_run_does(threads_client, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "run", path)
    given = examples(tmp_path / "data.zarr")
    resumed = train(threads_client, given, checkpoint=path, resume=True)
    assert resumed.history["epoch"].values[-1] == 1
    np.testing.assert_allclose(resumed.vector(), train(threads_client, given).vector(), rtol=1e-4)
    assert resumed.vector()[:2] == pytest.approx([0.45758435, 0.12421907], rel=1e-4)


def train_for_best(client, given, epochs, **options):
    train, held_out = given.split(0.75, seed=0)
    return dbdask.downpour(
        network(),
        train,
        client=client,
        optimizer=dbdask.adagrad(3.0),
        batch_size=20,
        replicas=1,
        shards=2,
        epochs=epochs,
        validation=held_out,
        keep="best",
        progress=False,
        **options,
    )


def test_a_checkpoint_returns_the_best_parameters_that_it_holds(threads_client, tmp_path):
    """The first of its two epochs was the better one."""
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "best_run", path)
    given = examples(tmp_path / "data.zarr")
    held = train_for_best(threads_client, given, 2, checkpoint=path, resume=True)
    losses = held.history["validation_loss"].dropna("record").values
    assert losses == pytest.approx([0.44147115, 0.89886988], rel=1e-3)
    assert held.vector()[:2] == pytest.approx([3.3637726, -0.03334939], rel=1e-3)


def test_a_checkpoint_with_the_best_parameters_goes_on_to_better_ones(threads_client, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "best_run", path)
    given = examples(tmp_path / "data.zarr")
    resumed = train_for_best(threads_client, given, 4, checkpoint=path, resume=True)
    unbroken = train_for_best(threads_client, given, 4)
    np.testing.assert_allclose(resumed.vector(), unbroken.vector(), rtol=1e-4)
    assert resumed.vector()[:2] == pytest.approx([6.408298, -0.2552619], rel=1e-3)


def train_by_batches(client, given, **options):
    return dbdask.sandblaster(
        network(),
        given,
        client=client,
        replicas=1,
        shards=2,
        iterations=6,
        tolerance=0.0,
        progress=False,
        **options,
    )


def test_a_checkpoint_of_sandblaster_resumes_with_its_history_of_vectors(threads_client, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "batch_run", path)
    given = examples(tmp_path / "data.zarr")
    resumed = train_by_batches(threads_client, given, checkpoint=path, resume=True)
    unbroken = train_by_batches(threads_client, given)
    np.testing.assert_allclose(resumed.vector(), unbroken.vector(), rtol=1e-4)
    assert resumed.history["loss"].values == pytest.approx(
        [1.13750458, 0.77544824, 0.45200569, 0.34175413, 0.21725519, 0.14536109, 0.09724365],
        rel=1e-3,
    )


def test_a_checkpoint_of_the_other_algorithm_is_refused(threads_client, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "batch_run", path)
    given = examples(tmp_path / "data.zarr")
    said = r"algorithm is 'sandblaster' there and 'downpour' here"
    with pytest.raises(dbdask.CheckpointError, match=said):
        train(threads_client, given, checkpoint=path, resume=True)


def test_a_checkpoint_of_another_rule_is_refused(threads_client, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(WRITTEN / "run", path)
    with pytest.raises(dbdask.CheckpointError, match="optimizer is 'adagrad' there"):
        dbdask.downpour(
            network(),
            examples(tmp_path / "data.zarr"),
            client=threads_client,
            optimizer=dbdask.adam(0.1),
            batch_size=20,
            checkpoint=path,
            resume=True,
        )
