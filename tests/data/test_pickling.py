"""Examples, results and their parts are whole when copied and pickled, or say what they lack."""

import copy
import pickle

import numpy as np
import pytest
import xarray as xr
import zarr

import dbdask
from dbdask.data.labels import Classes
from dbdask.data.pickling import CARRIED_BYTES
from dbdask.data.sources import open_source

ROWS = 400
ROUTES = ["store", "lazy", "dask", "memory"]
SHORT = {*((route, "pickle") for route in ROUTES), ("store", "copy"), ("memory", "deepcopy")}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda given: pickle.loads(pickle.dumps(given)),
}


def dataset(rows=ROWS):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype("f4")
    coords = {"t": np.arange(rows) * 2}
    return xr.Dataset({"x": (("t", "f"), x), "y": ("t", x.sum(1))}, coords)


def give(route, path, data):
    """The same data by another route."""
    if route in ("store", "lazy"):
        data.chunk(t=100).to_zarr(path, zarr_format=2)
        return str(path) if route == "store" else xr.open_zarr(path, chunks=None)
    return data.chunk(t=100).map_blocks(lambda block: block) if route == "dask" else data


def examples_of(given):
    return dbdask.Examples(given, inputs="x", targets="y", along="t")


def values_of(examples):
    with examples.reader(prefetch=False) as reader:
        parts = [reader.block(number).minibatch for number in range(examples.grid.block_count)]
    return [np.concatenate(a) for a in zip(*((p.inputs, p.targets) for p in parts), strict=True)]


def network():
    return dbdask.Network(input_shape=(3,), layers=[dbdask.Dense(1)], loss="squared")


@pytest.mark.parametrize(
    ("route", "how"),
    [
        pytest.param(route, how, marks=() if (route, how) in SHORT else pytest.mark.slow)
        for route in ROUTES
        for how in COPIES
    ],
)
def test_copied_examples_do_all_that_examples_do(route, how, tmp_path, threads_client):
    data = dataset()
    examples = examples_of(give(route, tmp_path / "d.zarr", data))
    copied = COPIES[how](examples)
    for one, other in zip(values_of(copied), values_of(examples), strict=True):
        np.testing.assert_array_equal(one, other)
    options = {"client": threads_client, "progress": False, "seed": 1}
    train, held_out = COPIES[how](copied.split(0.75))
    train = COPIES[how](train.standardize(client=threads_client))
    assert train.check(threads_client).examples == 300
    assert len(COPIES[how](copied.sel(t=slice(0, 100)))) == 51
    result = dbdask.sandblaster(network(), train, iterations=20, **options)
    assert COPIES[how](result).evaluate(held_out)["rmse"] < 0.01
    result = dbdask.downpour(network(), train, validation=COPIES[how](held_out), **options)
    predicted = COPIES[how](result).predict(data)
    xr.testing.assert_equal(predicted, result.predict(data))


@pytest.fixture
def elsewhere(process_client):
    """Call a function in another process that knows of its arguments what is pickled."""
    return lambda function, *given: process_client.submit(function, *given, pure=False).result()


@pytest.mark.parametrize("route", ROUTES)
def test_another_process_reads_what_was_pickled(route, tmp_path, elsewhere):
    def read(packed):
        examples = pickle.loads(packed)
        part = examples.standardize().sel(t=slice(0, 100))
        return part.check().examples, examples.source.route

    examples = examples_of(give(route, tmp_path / "d.zarr", dataset()))
    assert elsewhere(read, pickle.dumps(examples)) == (51, route)


def test_workers_take_examples_as_an_argument(process_client):
    def rows(examples):
        return examples.check(), examples.source.route

    for route, given in (("memory", dataset()), ("dask", dataset().chunk(t=100))):
        found, known = process_client.submit(rows, examples_of(given)).result()
        assert (found.examples, known) == (ROWS, route)


@pytest.mark.parametrize("chunks", [None, {"t": 50_000}])
def test_large_values_in_memory_stay_and_are_named(chunks):
    data = dataset(500_000)
    assert data["x"].nbytes > CARRIED_BYTES
    given = data if chunks is None else data.chunk(chunks)
    examples = examples_of(given)
    packed = pickle.dumps(examples)
    assert len(packed) < 10_000
    assert pickle.loads(packed).source is examples.source
    del examples
    lacking = pickle.loads(packed)
    assert len(lacking) == 500_000
    expected = r"variable 'x' are in the memory of.*MiB, and a pickle carries 4 MiB; write"
    for act in (lacking.check, lacking.standardize, lacking.worker_side):
        with pytest.raises(RuntimeError, match=expected):
            act()
    with pytest.raises(RuntimeError, match="'t' are in the memory"):
        lacking.sel(t=slice(0, 10))
    assert lacking.rebind(given).source.route == ("memory" if chunks is None else "dask")


def test_what_cannot_be_pickled_is_named():
    class Locked(np.ndarray):
        def __reduce_ex__(self, protocol):
            raise TypeError("locks cannot be pickled")

    data = dataset(10_000).assign_attrs(bad=np.zeros(3).view(Locked))
    packed = pickle.dumps(examples_of(data))
    with pytest.raises(RuntimeError, match="cannot be pickled.*locks cannot be pickled"):
        pickle.loads(packed).check()


def test_stores_in_memory_are_read_by_their_own_process_only(elsewhere):
    def refused(packed):
        with pytest.raises(RuntimeError, match="threads of its own process only"):
            pickle.loads(packed).check()
        return True

    store = zarr.storage.MemoryStore()
    dataset().to_zarr(store, consolidated=False)
    packed = pickle.dumps(examples_of(store))
    assert pickle.loads(packed).check().examples == ROWS
    assert elsewhere(refused, packed)


def test_arrays_given_beside_the_data_keep_their_own_names(elsewhere):
    def keys(packed):
        other = open_source(xr.Dataset()).variable(xr.DataArray([1.0], name="w"))
        return pickle.loads(packed).recipe.weights.key, other.key

    beside = xr.DataArray(np.ones(ROWS), dims="t", name="w")
    packed = pickle.dumps(dbdask.Examples(dataset(), inputs="x", along="t", weights=beside))
    known, other = elsewhere(keys, packed)
    assert known != other


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "given",
    [
        network(),
        dbdask.Dense(3, "relu"),
        dbdask.sgd(0.1),
        dbdask.momentum(0.1),
        dbdask.adagrad(0.1),
        dbdask.adam(0.1, weight_decay=0.1),
        Classes(("a", "b")),
    ],
    ids=lambda given: type(given).__name__,
)
def test_parts_are_equal_to_their_copies(given, how):
    assert COPIES[how](given) == given


@pytest.mark.parametrize("how", COPIES)
def test_recipes_are_whole_when_copied(how):
    recipe = examples_of(dataset()).isel(t=slice(3, 50)).recipe
    copied = COPIES[how](recipe)
    assert copied.inputs.names == ("x",) and copied.block_rows.sum() == 47
    assert copied.inputs.variables[0].read().shape == (ROWS, 3)
