"""What was kept and then changed: a reader ends in a named error, or in exactly the right numbers.

Files of checkpoints and of saved results are changed at random bytes. Nothing may crash, hang, run
code, take memory that the true numbers do not need, or give other numbers.
"""

import builtins
import marshal
import pickle
import re
import threading
import tracemalloc
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.run.resuming import open_checkpoint
from dbdask.run.tally import Tally
from dbdask.storage import checkpoint

MOST_BYTES = 16 * 2**20  # what a read may take; the true numbers are a few KB
ROWS = 240


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 6)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(6, 3))).argmax(axis=1)
    return xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})


def train(algorithm, data, client, **options):
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row").standardize()
    model = dbdask.Network(
        input_shape=(6,), layers=[dbdask.Dense(8, "relu"), dbdask.Dense(3)], loss="softmax"
    )
    return algorithm(model, examples, client=client, shards=2, progress=False, **options)


@pytest.fixture(scope="module")
def downpour_checkpoint(data, threads_client, tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "downpour.zarr"
    options = {"optimizer": dbdask.adagrad(0.1), "batch_size": 20, "epochs": 2}
    train(dbdask.downpour, data, threads_client, checkpoint=str(path), **options)
    return path


@pytest.fixture(scope="module")
def sandblaster_checkpoint(data, threads_client, tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "sandblaster.zarr"
    train(dbdask.sandblaster, data, threads_client, checkpoint=str(path), iterations=1)
    return path


@pytest.fixture(scope="module")
def saved_result(data, threads_client, tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "model.zarr"
    train(dbdask.downpour, data, threads_client, batch_size=20).save(path)
    return path


# What is done to a file: each returns other bytes, or None for a file that is gone.


def flip(content, rng):
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def overwrite(content, rng):
    start = rng.integers(len(content))
    length = min(len(content) - start, rng.integers(1, 40))
    return content[:start] + rng.bytes(length) + content[start + length :]


def truncate(content, rng):
    return content[: rng.integers(len(content))]


def delete(content, rng):
    return None


def duplicate(content, rng):
    start, stop = sorted(rng.integers(0, len(content) + 1, 2))
    return content[:stop] + content[start:stop] + content[stop:]


def other_number(content, rng):
    """Another number in the JSON, one that is as plausible as the true one."""
    numbers = list(re.finditer(rb"\d+", content))
    if not content.startswith(b"{") or not numbers:
        return flip(content, rng)
    chosen = numbers[rng.integers(len(numbers))]
    value = int(chosen.group())
    other = rng.choice([value + 1, value + 10, 0, 2 * value, 10**9, 10**18])
    return content[: chosen.start()] + str(other).encode() + content[chosen.end() :]


def other_letter(content, rng):
    """Another letter or digit for one."""
    letters = list(re.finditer(rb"[A-Za-z0-9]", content))
    if not letters:
        return flip(content, rng)
    at = letters[rng.integers(len(letters))].start()
    return content[:at] + rng.choice(list(b"abcxyz0189")).tobytes()[:1] + content[at + 1 :]


MUTATIONS = (flip, overwrite, truncate, delete, duplicate, other_number, other_letter)


def mutations(path, count, seed):
    """Every file truncated and deleted, and `count` changes by lot; the file is put back."""
    rng = np.random.default_rng(seed)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    always = ((file, change) for file in files for change in (delete, lambda c, r: b""))
    by_lot = ((files[rng.integers(len(files))], rng.choice(MUTATIONS)) for _ in range(count))
    for file, change in chain(always, by_lot):
        content = file.read_bytes()
        changed = change(content, rng)
        if changed is None:
            file.unlink()
        else:
            file.write_bytes(changed)
        yield f"{file.relative_to(path)} after {change.__name__}", changed == content
        file.write_bytes(content)


def forbid(patch, module, name):
    """Let a function fail the test where a reader calls it; the cluster's threads may."""
    allowed = getattr(module, name)

    def guarded(*args, **kwargs):
        thread = threading.current_thread()
        if thread is threading.main_thread() or thread.name.startswith(("zarr", "dbdask")):
            pytest.fail(f"a reader came to {name}")  # no Exception: nobody catches it
        return allowed(*args, **kwargs)

    patch.setattr(module, name, guarded)


@contextmanager
def nothing_is_executed(monkeypatch):
    """Whatever would run code that was read fails the test."""
    with monkeypatch.context() as patch:
        for name in ("load", "loads", "Unpickler"):
            forbid(patch, pickle, name)
        forbid(patch, marshal, "loads")
        forbid(patch, builtins, "eval")
        yield


def check(path, read, same, error_type, count):
    """Read after every mutation; returns how many there were, and how many were errors."""
    truth = read()
    tried = errors = 0
    tracemalloc.start()
    try:
        for what, unchanged in mutations(path, count, seed=len(path.name)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                assert same(read(), truth), what
            except error_type as error:
                assert not unchanged, what
                assert str(path) in str(error), (what, str(error))
                assert re.search("restore it from a copy|resume=|does not exist", str(error)), str(
                    error
                )
                assert not isinstance(error.__cause__, MemoryError), what
                errors += 1
            assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, what
            tried += 1
    finally:
        tracemalloc.stop()
    assert same(read(), truth)
    return tried, errors


def resumed(path, settings, cuts):
    """All that a resumed run reads, by shards that end at `cuts`."""
    with open_checkpoint(str(path), True, settings) as opened:
        last = opened.last
    assert last is not None
    Tally(last.state, lambda record: None)
    names = checkpoint.vector_names(str(path), last.group)
    vectors = {
        name: np.concatenate(
            [
                checkpoint.read_slice(str(path), last.group, name, start, stop)
                for start, stop in pairwise(cuts)
            ]
        )
        for name in names
    }
    return last.number, last.state, vectors


def same_snapshot(found, truth):
    return found[:2] == truth[:2] and same_vectors(found[2], truth[2])


def same_vectors(found, truth):
    return found.keys() == truth.keys() and all(
        np.array_equal(found[name], truth[name]) for name in truth
    )


@pytest.mark.parametrize(
    ("kind", "cuts", "vectors", "count"),
    [
        ("downpour", [0, 40, 83], {"parameters", "accumulator"}, 40),
        pytest.param(
            "sandblaster",
            [0, 83],
            {"parameters", "gradient", "s0", "y0"},
            15,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "downpour", [0, 40, 83], {"parameters", "accumulator"}, 240, marks=pytest.mark.slow
        ),
        pytest.param(
            "sandblaster",
            [0, 83],
            {"parameters", "gradient", "s0", "y0"},
            120,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_changed_checkpoint_is_an_error_or_the_right_numbers(
    request, monkeypatch, kind, cuts, vectors, count
):
    path = request.getfixturevalue(f"{kind}_checkpoint")
    settings = checkpoint.attributes(str(path))

    def read():
        with nothing_is_executed(monkeypatch):
            return resumed(path, settings, cuts)

    assert vectors <= set(read()[2])
    tried, errors = check(path, read, same_snapshot, dbdask.CheckpointError, count)
    assert tried >= count and errors > count / 2


@pytest.mark.parametrize(
    ("true", "changed"),
    [
        ('"float32"', '"int32"'),
        ('"little"', '"big"'),
        ("83", "84"),
        ("83", str(10**18)),
        ("42", str(10**9)),
    ],
)
def test_metadata_that_would_give_other_numbers_are_not_believed(
    downpour_checkpoint, true, changed
):
    path = downpour_checkpoint
    group = checkpoint.latest(str(path)).group
    file = path / group / "parameters" / "zarr.json"
    content = file.read_text()
    assert true in content
    try:
        file.write_text(content.replace(true, changed))
        with pytest.raises(dbdask.CheckpointError, match="metadata of .*parameters.*were changed"):
            checkpoint.read_slice(str(path), group, "parameters", 0, 40)
    finally:
        file.write_text(content)


def test_parameters_too_large_to_hold_are_read_piece_by_piece(saved_result, monkeypatch):
    whole = dbdask.load(saved_result).parameters
    monkeypatch.setattr("dbdask.result.EAGER_BYTES", 64)
    lazy = dbdask.load(saved_result).parameters
    assert all(variable.chunks for variable in lazy.data_vars.values())
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), whole)


@pytest.mark.parametrize("count", [120, pytest.param(300, marks=pytest.mark.slow)])
def test_a_changed_saved_result_is_an_error_or_the_right_numbers(
    saved_result, data, monkeypatch, count
):
    few = data.isel(row=slice(0, 8))

    def read():
        with nothing_is_executed(monkeypatch):
            result = dbdask.load(saved_result)
            vector, history = result.vector(), result.history.to_dict()
            kept = repr((result.examples.description(), history, result.status, result.model))
        return result.predict(few).compute(scheduler="synchronous"), vector, kept

    def same(found, truth):
        return (
            found[0].identical(truth[0])
            and np.array_equal(found[1], truth[1])
            and found[2] == truth[2]
        )

    tried, errors = check(saved_result, read, same, dbdask.ResultError, count)
    assert tried >= count and errors > count / 2
