"""A checkpoint of three shards, gone on from with another number of them: nothing is changed.

Downpour ends the same to the bit. Sandblaster has the same vectors to the bit, and takes the same
steps but for the rounding of inner products, which each number of shards adds up in its own order.
"""

import shutil

import numpy as np
import pytest
from test_downpour import flat, stop_after, train, write_store
from test_sandblaster import train as minimise

import dbdask
from dbdask.run.run import Run
from dbdask.storage import checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("cut") / "store.zarr")


@pytest.mark.parametrize("optimizer", [dbdask.adagrad(0.1), dbdask.adam(0.01)])
def test_one_replica_ends_where_it_would_have_on_any_number_of_shards(
    threads_client, store, tmp_path, optimizer
):
    options = {"replicas": 1, "optimizer": optimizer}
    whole = train(threads_client, store, shards=3, epochs=4, **options)
    path = str(tmp_path / "run.zarr")
    stop_after(threads_client, store, path, 5, shards=3, epochs=4, **options)
    for shards in (5, 1):
        again = str(tmp_path / f"again-{shards}.zarr")
        shutil.copytree(path, again)
        result = train(
            threads_client, store, shards=shards, epochs=4, checkpoint=again, resume=True, **options
        )
        np.testing.assert_array_equal(flat(result), flat(whole))


BEFORE, STEPS = 7, 12  # iterations: by then pairs have been thrown away


def last_state(path):
    """The vectors of the last snapshot, and what the method knows beside them."""
    last = checkpoint.latest(path)
    names = checkpoint.vector_names(path, last.group)
    vectors = {n: checkpoint.VectorReference(path, last.group, n).read() for n in names}
    return vectors, last.state["method"]


async def write_what_was_read(run, conclude=Run.conclude):
    """Conclude a run as if it had made a pass, so that it writes the vectors that it holds."""
    run.note_progress()
    return await conclude(run)


@pytest.fixture(scope="module")
def three_shards(threads_client, store, tmp_path_factory):
    """A run of three shards to the end, and the checkpoint of one that was broken off."""
    options = {
        "replicas": 1,
        "tolerance": 0.0,
        "history_length": 3,
        "shards": 3,
        "portion_size": 600,
    }
    path = str(tmp_path_factory.mktemp("three") / "run.zarr")
    minimise(threads_client, store, iterations=BEFORE, checkpoint=path, **options)
    return minimise(threads_client, store, iterations=STEPS, **options), path, options


@pytest.mark.parametrize("shards", [5, 1])
def test_sandblaster_takes_the_same_steps_on_any_number_of_shards(
    threads_client, store, tmp_path, monkeypatch, three_shards, shards
):
    whole, path, options = three_shards
    again = str(tmp_path / "again.zarr")
    shutil.copytree(path, again)
    options = options | {"shards": shards, "checkpoint": again, "resume": True}
    vectors, method = last_state(path)
    assert set(vectors) == {"parameters", "gradient"} | {f"{a}{k}" for a in "sy" for k in range(3)}

    minimise(threads_client, store, iterations=BEFORE, **options)
    assert checkpoint.latest(again).number == checkpoint.latest(path).number  # nothing is new
    with monkeypatch.context() as patched:
        patched.setattr(Run, "conclude", write_what_was_read)
        minimise(threads_client, store, iterations=BEFORE, **options)
    assert checkpoint.latest(again).number > checkpoint.latest(path).number
    found, method_found = last_state(again)
    assert method_found == method and set(found) == set(vectors)
    for name, vector in vectors.items():
        np.testing.assert_array_equal(found[name], vector, err_msg=name)

    result = minimise(threads_client, store, iterations=STEPS, **options)
    steps = [r.history.isel(record=slice(BEFORE + 1, None)) for r in (whole, result)]
    assert steps[0].sizes["record"] == STEPS - BEFORE
    for name in ("iteration", "evaluations", "bundles"):
        np.testing.assert_array_equal(*(s[name].values for s in steps), err_msg=name)
    for name in ("loss", "gradient_norm", "step_length"):
        np.testing.assert_allclose(*(s[name].values for s in steps), rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(flat(result), flat(whole), atol=1e-5)
