"""Snapshots of one run: a store that is late or hangs, and what is left in the checkpoint."""

import asyncio
import threading

import dask
import numpy as np
import pytest

from dbdask.errors import CheckpointError
from dbdask.models.layout import cut
from dbdask.run.outcome import read_if_small
from dbdask.run.ownership import Ownership
from dbdask.run.snapshots import Snapshots
from dbdask.storage import checkpoint, sealed

SIZE, SHARDS, NAMES = 10, 5, ["parameters"]


class Server:
    """Shards that write ones; those of `stuck` never answer."""

    generation, run, size, chunk, vector_order = 0, "run", SIZE, 2, None
    slices = cut(SIZE, SHARDS)
    holders = [[f"tcp://w{index}"] for index in range(SHARDS)]  # noqa: RUF012

    def __init__(self):
        self.stuck = set()

    async def call(self, index, method, path, group, what, nbytes):
        if index in self.stuck:
            await asyncio.Event().wait()
        start, stop = self.slices[index]
        ones = {"parameters": np.ones(stop - start, np.float32)}
        checkpoint.write_slice(path, group, start, stop, ones)
        return True


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {})
    return path


def numbers(path):
    """The snapshots that are there, committed or not."""
    return [int(name[:8]) for name in sealed.children(path) if name != "zarr.json"]


class Watched:
    """Notes begin and commit of each snapshot; one step of one number waits until `released`."""

    def __init__(self, monkeypatch, slow=None):
        self.slow, self.ended = slow, []
        self.reached, self.released = threading.Event(), threading.Event()
        for step in ("begin", "commit"):
            monkeypatch.setattr(checkpoint, step, self._watch(step, getattr(checkpoint, step)))

    def _watch(self, step, function):
        def call(path, group, *arguments):
            doing = step, int(group[:8])
            if doing == self.slow:
                self.reached.set()
                assert self.released.wait(120)
            function(path, group, *arguments)
            self.ended.append(doing)

        return call


def test_a_commit_that_comes_late_is_over_before_the_next_snapshot_which_deletes_it(
    path, monkeypatch
):
    watched = Watched(monkeypatch, slow=("commit", 2))

    async def live():
        snapshots = Snapshots(Server(), path, 0.0, None)
        await snapshots.write_live(NAMES, {})
        snapshots.number += 1
        snapshots.start_writing(2, NAMES, {})
        await asyncio.to_thread(watched.reached.wait, 30)
        await snapshots.give_up()
        assert snapshots.committed.number == 1
        asyncio.get_running_loop().call_later(0.2, watched.released.set)
        await snapshots.write_live(NAMES, {})

    asyncio.run(live())
    assert watched.ended == [(step, n) for n in (1, 2, 3) for step in ("begin", "commit")]
    assert numbers(path) == [3]
    assert checkpoint.latest(path).number == 3


def test_a_resumed_run_is_above_all_that_was_begun_and_leaves_one_snapshot(path):
    for number in (1, 2):
        group = checkpoint.name_of(number, 0, "zzz")
        checkpoint.begin(path, group, NAMES, SIZE, 2)
        if number == 1:
            checkpoint.commit(path, group, {})
    snapshots = Snapshots(Server(), path, 0.0, checkpoint.latest(path))
    asyncio.run(snapshots.write_live(NAMES, {}))
    assert snapshots.committed.number == 3
    assert numbers(path) == [3]


# A store that hangs


HANGS = {
    "begin": ("0.2s", r"beginning snapshot 0000000{n}-0-run; "),
    "write": (
        "3s",
        r"writing snapshot 0000000{n}-0-run by shard 0 on tcp://w0, shard 2 on tcp://w2, "
        r"shard 3 on tcp://w3 and 1 more; ",
    ),
    "commit": ("3s", r"committing snapshot 0000000{n}-0-run; "),
}


@pytest.mark.parametrize("step", HANGS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_store_that_hangs_is_an_error_that_names_the_step(path, monkeypatch, step, number):
    watched, server = Watched(monkeypatch, slow=(step, number)), Server()
    seconds, match = HANGS[step]
    stands = "the same call starts anew" if number == 1 else "go on from it with .*resume=True"
    match = rf"gave no answer in [\d.]+ s \(dbdask.store\) while {match}.*{stands}"

    async def live():
        snapshots = Snapshots(server, path, 0.0, None)
        for _ in range(number - 1):
            await snapshots.write_live(NAMES, {})
        if step == "write":
            server.stuck = {0, 2, 3, 4}
        with dask.config.set({"dbdask.store": seconds}):
            await asyncio.wait_for(snapshots.write_live(NAMES, {}), 60)

    try:
        with pytest.raises(CheckpointError, match=match.format(n=number)):
            asyncio.run(live())
    finally:
        watched.released.set()


def test_a_deletion_that_hangs_holds_up_no_snapshot(path, monkeypatch, caplog):
    snapshots_of, released, times = checkpoint.snapshots, threading.Event(), []

    def hang(path):
        times.append(max(numbers(path)))
        if len(times) == 1:
            assert released.wait(60)
        return snapshots_of(path)

    async def live():
        snapshots = Snapshots(Server(), path, 0.0, None)
        with dask.config.set({"dbdask.store": "3s"}):
            await asyncio.wait_for(snapshots.write_live(NAMES, {}), 60)
        await asyncio.wait_for(snapshots.write_live(NAMES, {}), 60)

    monkeypatch.setattr(checkpoint, "snapshots", hang)
    try:
        asyncio.run(live())
    finally:
        released.set()
    assert times == [1, 2] and numbers(path) == [2]
    assert "older snapshots could not be deleted: TimeoutError" in caplog.text


def test_parameters_that_a_store_does_not_hand_over_stay_there():
    released = threading.Event()

    class Slow:
        path = "run.zarr"

        def read(self):
            assert released.wait(60)

    async def live():
        with dask.config.set({"dbdask.store": "0.2s"}):
            return await asyncio.wait_for(read_if_small(slow, SIZE), 30)

    slow = Slow()
    try:
        assert asyncio.run(live()) is slow
    finally:
        released.set()


# Which snapshots are good


class Refusing(Server):
    """Shards whose parameters are not finite while `bad` is set."""

    bad = False

    async def call(self, *arguments, **options):
        await super().call(*arguments, **options)
        return not self.bad


def left_of(path, *steps, last=None):
    """What lies in a checkpoint after some snapshots, each good, doubtful, bad, or a bad end.

    A step may also delete the checkpoint, all of its snapshots, or the commit of the last good one.
    """

    async def live():
        server = Refusing()
        snapshots = Snapshots(server, path, 0.0, last)
        for step in steps:
            server.bad = step == "not finite"
            if step in DELETIONS:
                DELETIONS[step](path, snapshots.last_good)
            elif step == "bad end":
                group = await snapshots.write_end(NAMES, {}, "it has diverged")
                assert numbers(path)[-1] == snapshots.number == int(group[:8])
                await snapshots.forget(group)
            elif step == "end":
                await snapshots.write_end(NAMES, {}, "")
            else:
                doubt = "of refusals" if step == "doubtful" else ""
                await snapshots.write_live(NAMES, {}, doubt)
        return snapshots

    snapshots = asyncio.run(live())
    last = checkpoint.latest(path)
    assert (snapshots.committed and snapshots.committed.group) == (last and last.group)
    assert snapshots.last_good == (last.last_good if last else "")
    return numbers(path)


def delete_snapshots(path, good):
    checkpoint.delete_all(path, checkpoint.snapshots(path))


DELETIONS = {
    "checkpoint gone": lambda path, good: sealed.clear(path),
    "snapshots gone": delete_snapshots,
    "commit gone": lambda path, good: sealed.delete(path, f"{good}/commit"),
}


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["good", "good"], [2]),
        (["good", "doubtful"], [1, 2]),
        (["good", "doubtful", "doubtful"], [1, 3]),
        (["good", "doubtful", "good"], [3]),
        (["good", "not finite"], [1]),
        (["good", "not finite", "good"], [3]),
        (["good", "doubtful", "not finite"], [1, 2]),
        (["good", "doubtful", "bad end"], [1]),
        (["good", "bad end"], [1]),
        (["good", "doubtful", "end"], [3]),
        (["not finite"], [1]),  # nothing is there that would be better
    ],
)
def test_the_last_good_snapshot_stays_until_there_is_another(path, steps, left):
    assert left_of(path, *steps) == left


@pytest.mark.parametrize(
    ("steps", "left"),
    [(["bad end"], [1]), (["doubtful"], [1, 3]), (["good"], [3]), (["not finite"], [1, 2])],
)
def test_a_run_that_goes_on_from_a_doubtful_snapshot_knows_the_good_one(path, steps, left):
    assert left_of(path, "good", "doubtful") == [1, 2]
    assert left_of(path, *steps, last=checkpoint.latest(path)) == left


# A checkpoint that is deleted


@pytest.mark.parametrize("gone", DELETIONS)
@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["doubtful", "bad end"], [2]),
        (["doubtful", "doubtful", "bad end"], [2]),
        (["doubtful", "good", "bad end"], [3]),
        (["doubtful"], [2]),
        (["doubtful", "end"], [3]),
        (["not finite", "doubtful", "bad end"], [3]),
        (["bad end"], []),
    ],
)
def test_where_the_last_good_snapshot_was_deleted_the_next_one_takes_its_place(
    path, gone, steps, left, caplog
):
    assert left_of(path, "good", gone, *steps) == left
    if "bad end" in steps and not left:
        assert "no snapshot is left" in caplog.text


def test_a_run_that_goes_on_without_the_good_snapshot_leaves_the_one_it_began_with(path, caplog):
    assert left_of(path, "good", "doubtful") == [1, 2]
    last = checkpoint.latest(path)
    checkpoint.delete(path, last.last_good)

    async def live():
        snapshots = Snapshots(Server(), path, 0.0, last)
        await snapshots.forget(await snapshots.write_end(NAMES, {}, "it has diverged"))
        return snapshots

    snapshots = asyncio.run(live())
    assert snapshots.committed.group == snapshots.last_good == last.group
    assert numbers(path) == [2]
    assert f"{last.last_good} of checkpoint={path!r}" in caplog.text


def test_a_store_that_hangs_as_a_run_ends_badly_deletes_nothing(path, monkeypatch, caplog):
    released = threading.Event()

    async def live():
        snapshots = Snapshots(Server(), path, 0.0, None)
        await snapshots.write_live(NAMES, {})
        await snapshots.write_live(NAMES, {}, "of refusals")
        monkeypatch.setattr(checkpoint, "is_committed", lambda *_: released.wait(60))
        with dask.config.set({"dbdask.store": "3s"}):
            await asyncio.wait_for(snapshots.write_end(NAMES, {}, "it has diverged"), 60)
        return snapshots

    monkeypatch.setattr(checkpoint, "delete_all", lambda path, groups: None)
    try:
        snapshots = asyncio.run(live())
    finally:
        released.set()
    assert snapshots.committed.number == 1
    assert "other snapshots could not be deleted: TimeoutError" in caplog.text


@pytest.mark.parametrize("step", ["begin", "commit"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_snapshot_that_is_deleted_while_it_is_written_is_written_once_more(
    path, monkeypatch, step, times, caplog
):
    ownership = Ownership(path, {"seed": 3})
    ownership.take()
    left = times

    def deleting(function):
        def call(*arguments):
            nonlocal left
            if step == "begin":
                function(*arguments)
            if left:
                left -= 1
                sealed.clear(path)
            if step == "commit":
                return function(*arguments)

        return call

    target = (checkpoint, "begin") if step == "begin" else (ownership, "confirm")
    monkeypatch.setattr(*target, deleting(getattr(*target)))

    async def live():
        snapshots = Snapshots(Server(), path, 0.0, None, ownership)
        await snapshots.write_live(NAMES, {})

    try:
        if times == 2:
            with pytest.raises(CheckpointError, match="was deleted while it was written; no snap"):
                asyncio.run(live())
            return
        asyncio.run(live())
    finally:
        ownership.release()
    assert "it is written once more" in caplog.text
    assert checkpoint.attributes(path) == {"seed": 3}
    assert numbers(path) == [checkpoint.latest(path).number]


def test_a_disk_that_is_full_is_not_taken_for_a_deletion(path, monkeypatch, caplog):
    def full(*arguments):
        raise CheckpointError("no space left")

    monkeypatch.setattr(checkpoint, "begin", full)
    with pytest.raises(CheckpointError, match="no space left; no snapshot"):
        asyncio.run(Snapshots(Server(), path, 0.0, None).write_live(NAMES, {}))
    assert "once more" not in caplog.text
