"""Training from stored parameters: each shard reads its slice, and the client nothing."""

import logging
from pathlib import Path

import numpy as np
import pytest
from test_downpour import assert_nothing_left, flat, labelled, write_store

import dbdask
from dbdask.models.layout import Layout, Parameter
from dbdask.models.partition import partition_of
from dbdask.run import stored_start as module
from dbdask.run.planning import _in_order_of
from dbdask.run.stored_start import stored_start
from dbdask.saving import SavedVector
from dbdask.storage.checkpoint import VectorReference

SHARDS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stored-start") / "store.zarr", 300)


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """What is large enough for the shards to read it: everything."""
    monkeypatch.setattr(module, "LEAST_BYTES", 0)


def network():
    layers = [dbdask.Dense(10, "tanh"), dbdask.Dense(3)]
    return dbdask.Network(input_shape=(6,), layers=layers, loss="softmax")


def train(client, store, **options):
    settings = {"optimizer": dbdask.momentum(0.1), "batch_size": 20, "shards": SHARDS} | options
    return run_of(dbdask.downpour, client, store, settings)


def minimise(client, store, **options):
    return run_of(dbdask.sandblaster, client, store, {"iterations": 3, "shards": SHARDS} | options)


def run_of(algorithm, client, store, settings):
    common = {"client": client, "replicas": 1, "progress": False}
    return algorithm(network(), labelled(store), **common, **settings)


@pytest.fixture(scope="module")
def trained(threads_client, store):
    return train(threads_client, store)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """The path of a saved result."""
    path = tmp_path_factory.mktemp("saved") / "model.zarr"
    trained.save(path)
    return path


@pytest.fixture
def reads(monkeypatch):
    """The slices of stored vectors that this process has asked for."""
    asked, read = [], VectorReference._read

    def noted(reference, start, stop):
        asked.append((start, stop))
        return read(reference, start, stop)

    monkeypatch.setattr(VectorReference, "_read", noted)
    return asked


OPTIONS = {
    "downpour": (train, {}),
    "in parts": (train, {"partitions": 2}),
    "copies": (train, {"shard_copies": 2}),
    "sandblaster": (minimise, {}),
}


@pytest.mark.parametrize(("algorithm", "options"), OPTIONS.values(), ids=OPTIONS)
def test_each_shard_reads_its_own_slice(
    threads_client, store, trained, saved, reads, algorithm, options
):
    """All workers are in this process: no process reads the vector at a stretch."""
    expected = algorithm(threads_client, store, parameters=trained.vector(), **options)
    assert not reads
    found = algorithm(threads_client, store, parameters=dbdask.load(saved), **options)
    np.testing.assert_array_equal(flat(found), flat(expected))
    size = network().parameter_count
    assert 0 < max(stop - start for start, stop in reads) <= -(-size // SHARDS)
    covered = np.zeros(size, int)
    for start, stop in reads:
        covered[start:stop] += 1
    # The first element is asked for before as well, to see whether it comes.
    assert (covered[1:] == options.get("shard_copies", 1)).all()
    assert_nothing_left(threads_client)


def test_the_client_reads_nothing(process_client, store, trained, saved, reads):
    found = train(process_client, store, parameters=dbdask.load(saved))
    assert not reads
    np.testing.assert_array_equal(
        flat(found), flat(train(process_client, store, parameters=trained))
    )


def test_parameters_that_stay_in_a_checkpoint_are_read_by_the_shards(
    threads_client, store, tmp_path, monkeypatch, reads
):
    """As those of a model that is too large for the client."""
    monkeypatch.setattr("dbdask.run.outcome.LARGEST_READ", 0)
    first = train(threads_client, store, partitions=2, checkpoint=str(tmp_path / "first.zarr"))
    assert isinstance(first.stored, VectorReference)
    expected = train(threads_client, store, parameters=first.vector())
    reads.clear()
    second = train(
        threads_client, store, parameters=first, checkpoint=str(tmp_path / "second.zarr")
    )
    assert max(stop - start for start, stop in reads) <= -(-network().parameter_count // SHARDS)
    np.testing.assert_array_equal(second.vector(), flat(expected))


def test_what_workers_cannot_read_is_read_here(process_client, store, trained, reads, caplog):
    path = "memory://stored-start/model.zarr"  # each process has a memory of its own
    trained.save(path)
    with caplog.at_level(logging.WARNING, "dbdask"):
        found = train(process_client, store, parameters=dbdask.load(path))
    assert "are read here and sent to the shards, because worker tcp://" in caplog.text
    assert sum(stop - start for start, stop in reads) == network().parameter_count
    np.testing.assert_array_equal(
        flat(found), flat(train(process_client, store, parameters=trained))
    )


def test_a_small_result_is_read_here(saved, monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", 64 * 2**20)
    assert stored_start(dbdask.load(saved), network().layout) is None


def test_what_no_store_holds_is_not_for_the_shards(trained, saved):
    for given in (None, trained, trained.vector(), dbdask.load(saved).parameters):
        assert stored_start(given, network().layout) is None


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_slice_of_any_cut_is_found_by_name(trained, saved, reads, parts):
    """The model may have its parameters in another order than the stored one, and fewer."""
    stored = dbdask.load(saved)
    whole = trained.vector()
    views = network().layout.views(whole)
    partition = partition_of(network(), parts, 20)
    start = _in_order_of(partition, stored_start(stored, network().layout))
    expected = whole if partition is None else partition.table.to_cut(whole)
    for first, last in [(0, whole.size), (3, 4), (5, 50), (whole.size - 7, whole.size)]:
        np.testing.assert_array_equal(start.read(first, last), expected[first:last])
    if parts == 1:
        turned = Layout(tuple(reversed(network().layout.parameters))[:3])
        read = stored_start(stored, turned).read(0, turned.size)
        for name, view in turned.views(read).items():
            np.testing.assert_array_equal(view, views[name])


def test_a_long_slice_is_read_in_pieces(trained, saved, reads, monkeypatch):
    monkeypatch.setattr("dbdask.worker.initial.READ_AT_ONCE", 8)
    start = stored_start(dbdask.load(saved), network().layout)
    np.testing.assert_array_equal(start.read(2, 60), trained.vector()[2:60])
    assert max(stop - start for start, stop in reads) == 8


def test_another_models_parameters_are_refused_before_work_begins(threads_client, store, saved):
    other = dbdask.Network(input_shape=(6,), layers=[dbdask.Dense(3)], loss="softmax")
    stored = dbdask.load(saved)
    said = r"parameters\['dense_0_weights'\] has shape \(10, 6\), the model needs \(3, 6\)"
    with pytest.raises(ValueError, match=said):
        dbdask.downpour(other, labelled(store), client=threads_client, parameters=stored)
    more = Layout((*network().layout.parameters, Parameter("more", (2,), ("d",))))
    with pytest.raises(ValueError, match="parameters has no 'more', which the model needs"):
        stored_start(stored, more)


def test_a_number_that_is_not_finite_is_named(threads_client, store, trained, tmp_path):
    vector = trained.vector().copy()
    vector[-1] = np.nan
    bad = dbdask.Result(trained.model, trained.examples, vector, trained._history, trained.status)
    bad.save(tmp_path / "bad.zarr")
    with pytest.raises(ValueError, match="must be finite, but 'dense_1_bias' holds NaN"):
        train(threads_client, store, parameters=dbdask.load(tmp_path / "bad.zarr"))
    assert_nothing_left(threads_client)


def test_a_result_that_has_gone_is_an_error_that_names_it(threads_client, store, saved, tmp_path):
    stored = dbdask.load(saved)
    gone = SavedVector(str(tmp_path / "gone.zarr"), "")
    missing = dbdask.Result(stored.model, stored.examples, gone, stored._history, stored.status)
    with pytest.raises(dbdask.ResultError, match=r"gone\.zarr.* holds no saved result"):
        train(threads_client, store, parameters=missing)
    assert_nothing_left(threads_client)
    assert Path(saved).exists()
