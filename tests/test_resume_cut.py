"""A checkpoint of three shards, gone on from with another number of them: the same to the bit."""

import shutil

import numpy as np
import pytest
from test_downpour import flat, train, write_store

import dbdask


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("cut") / "store.zarr")


def broken_off(client, store, path, **options):
    """Three shards, four epochs to do, stopped in the middle of them."""
    seen = []
    result = train(
        client,
        store,
        shards=3,
        epochs=4,
        checkpoint=path,
        callbacks=[lambda record: seen.append(record) or len(seen) == 5],
        **options,
    )
    assert result.status.reason == "callback"


@pytest.mark.parametrize("optimizer", [dbdask.adagrad(0.1), dbdask.adam(0.01)])
def test_one_replica_ends_where_it_would_have_on_any_number_of_shards(
    threads_client, store, tmp_path, optimizer
):
    options = {"replicas": 1, "optimizer": optimizer}
    whole = train(threads_client, store, shards=3, epochs=4, **options)
    path = str(tmp_path / "run.zarr")
    broken_off(threads_client, store, path, **options)
    for shards in (5, 1):
        again = str(tmp_path / f"again-{shards}.zarr")
        shutil.copytree(path, again)
        result = train(
            threads_client, store, shards=shards, epochs=4, checkpoint=again, resume=True, **options
        )
        np.testing.assert_array_equal(flat(result), flat(whole))
