"""A checkpoint belongs to one run at a time: the later one is told, and a dead one gives way."""

import dataclasses
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import dask
import pytest
from zarr.storage import LocalStore, WrapperStore

from dbdask.errors import CheckpointError
from dbdask.run.ownership import Ownership
from dbdask.run.resuming import open_checkpoint
from dbdask.storage import checkpoint, owner, sealed


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.zarr")


@pytest.fixture
def taken(path):
    """A checkpoint that a run of this process owns; others wait 1 s for its name to change."""
    with dask.config.set({"dbdask.owner": "1s"}):
        ownership = Ownership(path, {"seed": 3})
        ownership.take()
        checkpoint.create(path, {"seed": 3})
        yield ownership
        ownership.release()


def elsewhere(ownership, **changes):
    """The owner as one of another machine would be: nothing is known of its process here."""
    return dataclasses.replace(ownership.me, machine="another", token="other", **changes)


def write(path, number, ownership):
    group = checkpoint.name_of(number, 0, "run")
    checkpoint.begin(path, group, ["parameters"], 2, 2)
    ownership.confirm()
    checkpoint.commit(path, group, {})


def test_a_second_run_of_this_process_is_told_at_once(taken, path):
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"in use by a run of process {os.getpid()} on "):
        Ownership(path, {}).take()
    assert time.monotonic() - began < 1
    assert owner.read(path).token == taken.me.token


def test_a_run_elsewhere_that_gives_signs_of_life_keeps_its_checkpoint(path):
    with dask.config.set({"dbdask.owner": "30s"}):
        other = elsewhere(Ownership(path, {}))
        owner.write(path, other)
        alive = threading.Timer(0.5, owner.write, [path, other.next()])
        alive.start()
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=r"in use by .* give each run its own path"):
            Ownership(path, {}).take()
        alive.join()
        assert time.monotonic() - began < 10
        assert owner.read(path) == other.next()


def test_a_run_elsewhere_that_gives_none_is_dead_after_the_longer_of_both_patiences(path):
    with dask.config.set({"dbdask.owner": "0.2s"}):
        mine = Ownership(path, {})
        owner.write(path, elsewhere(mine, patience=1.0))
        began = time.monotonic()
        mine.take()
        assert time.monotonic() - began >= 1.0
        assert owner.read(path).token == mine.me.token
        mine.release()
        assert owner.read(path) is None


def test_a_run_whose_process_has_ended_on_this_machine_is_dead_at_once(path):
    program = """
import sys
from dbdask.storage import owner
owner.write(sys.argv[1], owner.this_process(600.0))
"""
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)
    assert owner.read(path).is_gone
    ownership = Ownership(path, {})
    ownership.take()
    ownership.release()


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it(path):
    mine = owner.this_process(1.0)
    assert not mine.is_gone
    assert dataclasses.replace(mine, started="1").is_gone
    assert not dataclasses.replace(mine, started="1", machine="another").is_gone
    assert not dataclasses.replace(mine, started="1", machine="").is_gone
    assert dataclasses.replace(mine, process=1, token="1").is_gone  # it started at another time
    owner.has_ended(mine)
    assert mine.is_gone  # its run has ended, though its process has not


def test_a_run_renews_its_name_while_it_lives(taken, path):
    until = time.monotonic() + 120
    while owner.read(path).beats < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert owner.read(path).beats >= 2
    taken.release()
    assert sealed.children(path) == ["zarr.json"]


def test_the_first_of_two_runs_ends_where_the_later_has_taken_over(taken, path):
    write(path, 1, taken)
    owner.write(path, elsewhere(taken))
    with pytest.raises(CheckpointError, match=r"was taken by .*not renew its name for 1 s"):
        write(path, 2, taken)
    assert checkpoint.latest(path).number == 1
    taken._renewing.join(120)  # it leaves the other's name alone
    assert not taken._renewing.is_alive()
    taken.release()
    assert owner.read(path).token == "other"


@pytest.mark.parametrize("what", ["all", "the root", "the owner"])
def test_what_was_deleted_is_begun_anew(taken, path, what):
    if what == "all":
        sealed.clear(path)
        zarr_made_it = checkpoint.name_of(1, 0, "run")
        checkpoint.begin(path, zarr_made_it, ["parameters"], 2, 2)  # and an empty root
    elif what == "the root":
        os.remove(f"{path}/zarr.json")
    else:
        owner.delete(path)
    assert taken.confirm() == (what != "the owner")
    assert checkpoint.attributes(path) == {"seed": 3}
    assert owner.read(path).token == taken.me.token
    assert not taken.confirm()


def test_a_root_that_was_replaced_by_something_else_is_left_alone(taken, path):
    sealed.replace_root(path, {"other": 1}, {})
    with pytest.raises(CheckpointError, match="holds something, but no checkpoint"):
        taken.confirm()


def test_a_damaged_name_counts_as_an_owner_that_may_live(path):
    with dask.config.set({"dbdask.owner": "0.5s"}):
        ownership = Ownership(path, {})
        owner.write(path, ownership.me)
        with open(f"{path}/{owner.KEY}", "w") as file:
            file.write("{")
        began = time.monotonic()
        ownership.take()
        assert time.monotonic() - began >= 0.5
        ownership.release()


def test_of_many_that_begin_at_once_one_gets_the_checkpoint(path):
    barrier, got, told = threading.Barrier(6), [], []

    def begin():
        barrier.wait()
        try:
            with open_checkpoint(path, "auto", {"verb": "test"}) as opened:
                got.append(opened)
                ended.wait(120)
        except CheckpointError as error:
            told.append(str(error))

    ended = threading.Event()
    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 120
    while len(told) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(told) == 5
    assert [text for text in told if "in use by" not in text] == []
    assert sealed.children(path) == ["zarr.json"]


def test_a_root_that_is_being_written_is_no_checkpoint_yet(path):
    os.makedirs(path)
    with open(f"{path}/zarr.{32 * '0'}.partial", "w") as file:
        file.write("{")
    assert not checkpoint.exists(path)
    with pytest.raises(CheckpointError, match="does not exist"), open_checkpoint(path, True, {}):
        pass
    with open_checkpoint(path, "auto", {}):
        assert sealed.children(path) == ["owner", "zarr.json"]


def test_an_error_before_the_run_leaves_no_owner(path):
    with open_checkpoint(path, "auto", {"verb": "one"}) as opened:
        group = checkpoint.name_of(1, 0, "run")
        checkpoint.begin(path, group, ["parameters"], 2, 2)
        checkpoint.commit(path, group, {})
        assert opened.last is None
    for algorithm, resume, why in (
        ("other", "auto", "another algorithm"),
        ("one", False, "exists already"),
    ):
        with (
            pytest.raises(CheckpointError, match=why),
            open_checkpoint(path, resume, {"verb": algorithm}),
        ):
            pass
    assert sealed.children(path) == [group, "zarr.json"]
    with open_checkpoint(path, True, {"verb": "one"}) as opened:
        assert opened.last.group == group


class Refusing(WrapperStore):
    """A store that refuses to change the owner."""

    async def set(self, key, value):
        raise OSError(f"cannot put {key}")

    async def set_if_not_exists(self, key, value):
        raise OSError(f"cannot put {key}")

    async def delete_dir(self, prefix):
        raise OSError(f"cannot delete {prefix}")


@pytest.fixture
def refusing(monkeypatch):
    """Has every store refuse to change the owner, as long as it is entered."""

    @contextmanager
    def entered():
        with monkeypatch.context() as patched:
            patched.setattr(sealed, "open_store", lambda place: Refusing(LocalStore(place)))
            yield

    return entered


class Heard(logging.Handler):
    """The log of names that a checkpoint does not take, up to the warning."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.levels, self.text, self.warned = [], "", threading.Event()

    def emit(self, record):
        if "does not take the name" in record.getMessage() and not self.warned.is_set():
            self.levels.append(record.levelname)
            self.text += record.getMessage()
            if record.levelno == logging.WARNING:
                self.warned.set()


@pytest.fixture
def heard():
    """The log of a run that cannot renew its name."""
    handler = Heard()
    logging.getLogger("dbdask").addHandler(handler)
    yield handler
    logging.getLogger("dbdask").removeHandler(handler)


def test_a_run_warns_where_its_name_cannot_be_renewed_because_the_store_hangs(
    taken, path, monkeypatch, heard
):
    answers = threading.Event()

    def hang(place, content):
        answers.wait(60)

    monkeypatch.setattr(owner, "write", hang)
    try:
        assert heard.warned.wait(120)
    finally:
        answers.set()
    assert "2 times in a row (TimeoutError())" in heard.text


def test_a_store_that_takes_no_owner_is_an_error_before_the_run(path, refusing):
    with (
        refusing(),
        pytest.raises(CheckpointError, match="cannot be written: .* while taking it"),
        open_checkpoint(path, "auto", {}),
    ):
        pass
    with open_checkpoint(path, "auto", {}):
        pass


def test_a_run_goes_on_where_its_name_cannot_be_renewed_and_the_next_takes_over(
    taken, path, refusing, heard, caplog
):
    caplog.set_level("INFO")
    with refusing():
        assert heard.warned.wait(120)
        assert heard.levels == ["INFO", "WARNING"]
        assert "for 1 s (dbdask.owner) another run may take the checkpoint" in heard.text
        assert not taken.confirm()
        taken.release()
    assert "still names its owner" in caplog.text
    assert owner.read(path).is_gone
    with open_checkpoint(path, "auto", {}):
        pass
