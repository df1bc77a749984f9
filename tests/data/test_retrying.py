"""Reads whose error may pass are tried again, and no others."""

import logging
import threading
import urllib.error

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from failing_store import Always, FailingStore, Times
from xarray.backends import BackendArray
from xarray.core import indexing

from dbdask import DataError, Examples
from dbdask.data import retrying
from dbdask.data.retrying import is_refused, may_pass, tried_again
from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import StoreFailed

ROWS = 60


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("dbdask.schedule.retries.FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retrying, "_said", {})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("retrying") / "store.zarr")
    values().chunk(t=10).to_zarr(path, consolidated=False)
    return path


def values():
    inputs = np.arange(ROWS * 4, dtype="f4").reshape(ROWS, 4)
    return xr.Dataset({"x": (("t", "f"), inputs), "y": ("t", inputs.sum(axis=1))})


def examples_of(data):
    return Examples(data, inputs="x", targets="y", along="t")


def all_inputs(examples):
    with examples.reader(prefetch=False) as reader:
        blocks = [reader.block(block) for block in range(examples.grid.block_count)]
    return np.concatenate([block.minibatch.inputs for block in blocks])


def http_error(status):
    """An error as aiohttp raises it, which is not imported for that."""
    kind = type("ClientResponseError", (Exception,), {"__module__": "aiohttp.client_exceptions"})
    error = kind("refused")
    error.status = status
    return error


def http_failure(name):
    base = type(name, (Exception,), {"__module__": "aiohttp.client_exceptions"})
    return type("Derived", (base,), {})("cut off")


@pytest.mark.parametrize(
    "error",
    [
        OSError("503 slow down"),
        OSError(5, "input/output error"),
        ConnectionResetError("reset"),
        TimeoutError("late"),
        http_error(503),
        http_error(429),
        http_failure("ClientConnectionError"),
        http_failure("ClientPayloadError"),
        urllib.error.HTTPError("http://store", 500, "broken", {}, None),
    ],
    ids=repr,
)
def test_what_a_store_says_of_itself_may_pass(error):
    assert may_pass(error) and not is_refused(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no"),
        PermissionError("no"),
        IsADirectoryError("no"),
        KeyError("no"),
        ValueError("no codec"),
        http_error(403),
        http_error(404),
        http_failure("InvalidURL"),
        urllib.error.HTTPError("http://store", 404, "gone", {}, None),
        retrying.ReadFailed("tried already"),
    ],
    ids=repr,
)
def test_what_stays_so_is_not_tried_again(error):
    tries = []

    def read():
        tries.append(1)
        raise error

    assert not may_pass(error)
    with pytest.raises(type(error)):
        tried_again(read, "it", "the store")
    assert len(tries) == 1


def test_a_right_that_lacks_is_told_from_the_rest():
    assert is_refused(PermissionError("no")) and is_refused(http_error(401))
    assert not is_refused(http_error(404)) and not is_refused(ValueError("no"))


# Every route that may fail


def stored(path, fault, tmp_path):
    return FailingStore(path, "x/c/3", fault)


def lazy(path, fault, tmp_path):
    store = FailingStore(path, "x/c/3", fault)
    return xr.open_zarr(store, chunks=None, consolidated=False)


class Backend(BackendArray):
    """An array of a file that is no Zarr store."""

    def __init__(self, values, fault):
        self.values, self.fault = values, fault
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key):
        if self.fault():
            raise OSError("503 slow down")
        return self.values[key]


def file(path, fault, tmp_path):
    whole = values()
    data = indexing.LazilyIndexedArray(Backend(whole["x"].values, fault))
    return whole.assign(x=xr.Variable(("t", "f"), data))


def blocks(path, fault, tmp_path):
    def block(value, block_info=None):
        if block_info and fault():
            raise OSError("503 slow down")
        return value

    whole = values()
    found = da.from_array(whole["x"].values, chunks=(10, 4)).map_blocks(
        block, dtype="f4", meta=np.empty((0, 0), "f4")
    )
    return whole.assign(x=(("t", "f"), found))


ROUTES = [stored, lazy, file, blocks]


@pytest.mark.parametrize("failures", [1, 4])
@pytest.mark.parametrize("route", ROUTES)
def test_an_error_that_passes_costs_a_few_tries(path, tmp_path, route, failures):
    with dask.config.set(scheduler="synchronous"):
        fault = Times(tmp_path / "left")
        examples = examples_of(route(path, fault, tmp_path))
        fault.add(failures)
        np.testing.assert_array_equal(all_inputs(examples), values()["x"])
    assert not fault.left


@pytest.mark.parametrize("route", ROUTES)
def test_after_five_tries_the_error_says_what_failed(path, tmp_path, route):
    with dask.config.set(scheduler="synchronous"):
        fault = Times(tmp_path / "left")
        examples = examples_of(route(path, fault, tmp_path))
        fault.add(100)
        words = r"was tried 5 times, the last time with OSError: 503 slow down; its store is out"
        with pytest.raises(StoreFailed, match=words) as caught:
            all_inputs(examples)
    assert isinstance(caught.value, DataError)
    if route is not file:
        assert "'x'" in str(caught.value)
    if route is stored:
        assert "at [30:40, 0:4]" in str(caught.value) and "key x/c/3/0" in str(caught.value)
    if route is not file:  # whose values xarray reads in boxes of its own
        assert fault.left == 95


def test_a_read_that_is_refused_is_tried_once(path, tmp_path):
    fault = Times(tmp_path / "left", 3)
    examples = examples_of(FailingStore(path, "x/c/3", fault, PermissionError))
    with pytest.raises(DataError, match=r"PermissionError.*give every process.* the right"):
        all_inputs(examples)
    assert fault.left == 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_store_that_would_end_the_loop_of_zarr_is_named(path, kind):
    with dask.config.set({"dbdask.read": "20s"}):
        failing = examples_of(FailingStore(path, "x/c/3", Always(), kind))
        with pytest.raises(DataError, match=rf"{kind.__name__}\('503 slow down'\) was raised in"):
            all_inputs(failing)
        whole = all_inputs(examples_of(FailingStore(path, "x/c/3", Times(f"{path}-none"))))
    np.testing.assert_array_equal(whole, values()["x"])


@pytest.mark.parametrize("part", ["zarr.json", "x/zarr.json"])
def test_metadata_are_tried_again(path, tmp_path, part):
    fault = Times(tmp_path / "left", 3)
    examples = examples_of(FailingStore(path, part, fault))
    assert not fault.left and len(all_inputs(examples)) == ROWS


def test_metadata_that_cannot_be_read_are_named(path, tmp_path):
    fault = Times(tmp_path / "left")
    examples = examples_of(FailingStore(path, "x/zarr.json", fault))
    fault.add(100)
    with pytest.raises(StoreFailed, match=r"the metadata of variable 'x'.* was tried 5 times"):
        all_inputs(examples)
    with pytest.raises(OSError, match="was tried 5 times"):
        examples_of(FailingStore(path, "zarr.json", Always()))


def test_it_is_said_once(path, tmp_path, caplog):
    fault = Times(tmp_path / "left", 4)
    with caplog.at_level(logging.WARNING, logger="dbdask"):
        all_inputs(examples_of(FailingStore(path, "x/c", fault)))
    said = [line for line in caplog.messages if "503 slow down" in line]
    assert len(said) == 1 and "up to 5 times" in said[0]


def test_a_wait_between_two_tries_can_be_given_up(path, monkeypatch):
    paused = threading.Event()

    def endless(failures):
        paused.set()
        return 1e6

    monkeypatch.setattr(retrying, "pause_after", endless)
    examples = examples_of(FailingStore(path, "x/c/3", Always()))
    reader = examples.reader(prefetch=False)
    closing = threading.Thread(target=lambda: paused.wait(60) and reader.close())
    closing.start()
    with pytest.raises(ReadGivenUp):
        for block in range(examples.grid.block_count):
            reader.block(block)
    closing.join()


def test_all_tries_together_end_at_the_deadline(path, monkeypatch):
    monkeypatch.setattr(retrying, "pause_after", lambda failures: 1e6)
    examples = examples_of(FailingStore(path, "x/c/3", Always()))
    with (
        dask.config.set({"dbdask.read": "0.3s"}),
        pytest.raises(DataError, match=r"chunk c/3/0 .* gave no answer in 0.3"),
    ):
        all_inputs(examples)
