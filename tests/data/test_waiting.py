"""Reads that hang: they are named, end at a deadline, and can be given up at once."""

import os
import re
import signal
import threading
import time
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from slow_store import HangingStore, make_hang
from test_real_cluster import start_script

import dbdask
from dbdask.data import waiting
from dbdask.data.waiting import ReadGivenUp, Reads, deadline, long_reads, waited_for
from dbdask.errors import DataError

ROWS, CHUNK = 120, 20
KEY = "x/c/3/0"


@pytest.fixture
def never():
    """A read that hangs until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


@pytest.fixture
def hanging(tmp_path):
    """Examples of a store with a chunk that hangs."""
    path = str(tmp_path / "store.zarr")
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {"x": (("row", "f"), rng.normal(size=(ROWS, 3))), "y": ("row", np.arange(ROWS) % 2)}
    )
    data.chunk(row=CHUNK).to_zarr(path, consolidated=False)
    let_go = make_hang(path, KEY)
    yield dbdask.Examples(HangingStore.at(path), inputs="x", targets="y", along="row")
    let_go()


def read_all(examples):
    """Every minibatch of a pass, as a loop of the user's own has them."""
    with examples.reader() as reader:
        for portion in examples.cut(20, 20).contiguous():
            yield from reader.minibatches(portion, 20)


def name():
    return "variable 'x' of a store"


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("key", ["zarr.json", "x/zarr.json", "row/zarr.json", "row/c/0"])
def test_metadata_and_coordinates_that_hang_are_named_at_the_deadline(tmp_path, key, consolidated):
    path = str(tmp_path / "store.zarr")
    data = xr.Dataset({"x": (("row", "f"), np.zeros((40, 3)))}, coords={"row": 2.0 * np.arange(40)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are no part of the format yet
        data.to_zarr(path, consolidated=consolidated)
    let_go = make_hang(path, key)
    said = f"{re.escape(path)}.* gave no answer in .* \\(dbdask.read\\)"
    try:
        with dask.config.set({"dbdask.read": "0.3s"}), pytest.raises(DataError, match=said):
            examples = dbdask.Examples(HangingStore.at(path), inputs="x", along="row")
            examples.sel(row=slice(2, 30)).batch()
            examples.source.coordinates()
    finally:
        let_go()


def test_what_a_read_returns_or_raises_comes_back():
    assert waited_for(lambda: 5, name) == 5
    with pytest.raises(KeyError, match="mine"):
        waited_for(lambda: {}["mine"], name)


def test_a_read_that_hangs_is_named_now_and_then_and_ends_at_its_deadline(
    never, monkeypatch, caplog
):
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(waiting, "WARN_SECONDS", 0.1)
    with dask.config.set({"dbdask.read": "0.35s"}), pytest.raises(DataError) as raised:
        waited_for(never, name)
    words = "variable 'x' of a store gave no answer in 0.35 s (dbdask.read)"
    assert str(raised.value).startswith(words)
    said = [record.message for record in caplog.records]
    assert 1 <= len(said) <= 3
    assert all(line.startswith(f"{name()} has been waited for") for line in said)


def test_the_deadline_grows_with_the_bytes_and_can_be_set():
    assert deadline(20_000_000) == deadline() + 1 == 61
    with dask.config.set({"dbdask.read": "2 minutes"}):
        assert deadline() == 120


def test_a_pause_of_the_process_is_no_part_of_a_read(never, monkeypatch):
    """The clock jumps by an hour at the second look, as for one that was stopped."""
    times = iter([0.0, 0.2, 3600.2, 3600.4, 3600.6])
    wait = waiting._Wait(name)
    wait._clock = waiting.AwakeClock(lambda: next(times))
    for _ in range(3):
        wait.look(1.0)
    assert wait.passed < 1.0


def test_given_up_reads_end_at_once_and_a_closed_reader_begins_none(never):
    reads, raised = Reads(), []

    def read():
        with reads.here(), pytest.raises(ReadGivenUp):
            waited_for(never, name)
        raised.append(True)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(reads._waited_for) < 2:
        time.sleep(0.001)
    reads.give_up(least=60.0)  # none has taken so long
    assert len(reads._waited_for) == 2
    reads.give_up()
    for thread in threads:
        thread.join(120)
    assert raised == [True, True]
    reads.close()
    with reads.here(), pytest.raises(ReadGivenUp, match="closed"):
        waited_for(never, name)
    assert waited_for(lambda: 1, name) == 1  # another's reads go on


def test_others_can_see_what_is_waited_for(never, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "WARN_SECONDS", 0.02)
    reads = Reads()

    def read():
        with reads.here(), pytest.raises(ReadGivenUp):
            waited_for(never, name)

    thread = threading.Thread(target=read)
    thread.start()
    while not (found := long_reads()):
        time.sleep(0.001)
    assert found[0][0] == name() and found[0][1] >= 0.02
    reads.give_up()
    thread.join(120)
    assert not long_reads()


def test_the_error_names_variable_chunk_and_store(hanging, tmp_path):
    with dask.config.set({"dbdask.read": "0.3s"}), pytest.raises(DataError) as raised:
        list(read_all(hanging))
    for words in ("variable 'x'", "chunk c/3/0", "[60:80, 0:3]", str(tmp_path), "dbdask.read"):
        assert words in str(raised.value)


def test_closing_a_reader_waits_for_no_read(hanging):
    reader = hanging.reader()
    portions = hanging.cut(20, 20).contiguous()
    hung = next(p for p in portions if p.blocks == (3,))
    reader.prefetch(hung)
    ahead = reader._ahead
    while not any("chunk c/3/0" in wait.what() for wait in list(waiting._waits)):
        time.sleep(0.001)
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < 1
    ahead.join(120)
    assert not ahead.is_alive()


ON_THE_CLIENT = {
    "minibatches": lambda examples: list(read_all(examples)),
    "standardize": lambda examples: examples.standardize(),
    "check": lambda examples: examples.check(),
}


def read_until_interrupted(path, what):
    """Read in this process until Ctrl-C ends the wait; then end the process."""
    wait = waiting._wait_long

    def said_wait(*given):
        print(f"{os.getpid()} waits", flush=True)
        wait(*given)

    waiting._wait_long = said_wait
    examples = dbdask.Examples(HangingStore.at(path), inputs="x", targets="y", along="row")
    try:
        ON_THE_CLIENT[what](examples)
    except KeyboardInterrupt:
        print(f"{what} interrupted", flush=True)
    finally:
        os._exit(0)


def test_ctrl_c_ends_a_read_on_the_client_at_once(hanging, tmp_path):
    # A process for each, of one that has imported what they need.
    script = f"""
        import os
        from test_waiting import ON_THE_CLIENT, read_until_interrupted
        for what in ON_THE_CLIENT:
            process = os.fork()
            if not process:
                read_until_interrupted({str(tmp_path / "store.zarr")!r}, what)
            os.waitpid(process, 0)
    """
    process = start_script(script)
    for what in ON_THE_CLIENT:
        line = process.stdout.readline()
        assert line.endswith(" waits\n"), line
        began = time.monotonic()
        os.kill(int(line.split()[0]), signal.SIGINT)
        assert process.stdout.readline() == f"{what} interrupted\n"
        assert time.monotonic() - began < 30  # of the 60 s that a read may take
    process.communicate()


def test_the_deadline_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "failure.md").read_text()
    assert f"| `read` | {deadline():g} s" in page
    assert f"{deadline():g}s" == waiting.READ_SECONDS
