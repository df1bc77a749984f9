"""What an older version wrote still loads: a saved model and a checkpoint, kept in the repository.

They were written by version 0.1.0 when update rules had names and networks knew `Dense` alone.
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
