"""What fails again and again ends the run with an error that names it, and not the cluster."""

import asyncio
import os
import signal
import types

import dask
import pytest
from counting import CountingModel
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, counted, write_store
from test_leaving import addresses, wait_until
from test_recovery import assert_workers_run_tasks
from test_sandblaster import LinearCounting

import dbdask
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.errors import SchedulerLost, ShardLost, WorkerError
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run.failures import MOST_ATTEMPTS
from dbdask.run.giving_up import late_workers, suspects, unreachable, why_unreachable
from dbdask.run.guard import MISSED_PINGS, Guard, guarded
from dbdask.run.outstanding import Outstanding
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.recovery import MOST_RECOVERIES, Recovery, Returns, RunLost
from dbdask.run.roster import Roster
from dbdask.run.run import Run
from dbdask.run.snapshots import Snapshots
from dbdask.run.workforce import Workforce
from dbdask.schedule.awake import AwakeClock
from dbdask.schedule.bundles import Bundle
from dbdask.schedule.portions import Portion
from dbdask.worker.link import ServerLink

ROWS, BAD_ROW = 1200, 777
ENDLESS = 20  # what happens so often would have no end


# Work that fails, as the workforce counts it


class BringsNothing:
    """Stands for a provider of examples that all workers can read."""

    has_values = False

    def lies_on(self, portion, workers):
        return False

    def forget(self, workers):
        pass


PROVIDERS = dict.fromkeys(("train", "validation"), BringsNothing())


def portion(number):
    return Portion(0, number, 0, (number,), 0, 10, ())


def outstanding(work, worker, outcome=None):
    """Work on a worker: still running, or ended with an error or a report."""
    future = asyncio.get_running_loop().create_future()
    if isinstance(outcome, asyncio.CancelledError):
        future.cancel()
    elif isinstance(outcome, Exception):
        future.set_exception(outcome)
    elif outcome is not None:
        future.set_result(outcome)
    return Outstanding(work, worker, future, 0.0, lambda report: "", lambda: None)


def workforce(*workers):
    connected = types.SimpleNamespace(closed=lambda: False)
    client = types.SimpleNamespace(scheduler_comm=connected)
    facts = {w: WorkerFacts(w, w, "here", 0) for w in workers}
    return Workforce(client, "run", b"", PROVIDERS, Roster(client, b"", None, None, facts=facts))


async def lose(force, *held):
    """Workers of `held` are gone: what they had is given up, the first of each is blamed."""
    force.outstanding = list(held)
    force.roster.facts = {}
    given_up = await force.watch_silence()
    assert given_up == [out.work for out in held]


def report(finished=True):
    return types.SimpleNamespace(finished=finished)


def test_a_portion_that_costs_five_workers_is_named():
    async def live():
        force = workforce()
        for n in range(MOST_ATTEMPTS - 1):
            await lose(force, outstanding(portion(3), f"w{n}"), outstanding(portion(4), f"w{n}"))
            assert ("failed" in force.failures.suspicion) == (n > 0)
        await lose(force, outstanding(portion(4), "w8"))  # it had only waited behind the other
        with pytest.raises(WorkerError, match=r"portion 3 of .*failed 5 times.*worker w9 was lost"):
            await lose(force, outstanding(portion(3), "w9"))

    asyncio.run(live())


def test_failures_of_a_portion_count_on_in_another_bundle_and_end_where_it_is_finished():
    async def live():
        force = workforce("w")
        bundles = [Bundle(n, n, (portion(n), portion(7))) for n in range(MOST_ATTEMPTS + 1)]
        for bundle in bundles[:3]:
            force.outstanding = [outstanding(bundle, "w", ValueError("bad"))]
            [(_, answer)] = await force.ended(1.0)
            assert answer is None
        assert "bundle 2 (portions 2 to 7) failed 3 times" in force.failures.suspicion
        force.outstanding = [outstanding(bundles[2], "w", report())]
        await force.ended(1.0)
        assert not force.failures.suspicion
        for bundle in bundles[:4]:
            force.outstanding = [outstanding(bundle, "w", ValueError("bad"))]
            await force.ended(1.0)
        force.outstanding = [outstanding(bundles[5], "w", ValueError("bad"))]
        with pytest.raises(WorkerError, match=r"bundle 5 .* failed 5 times.*ValueError\('bad'\)"):
            await force.ended(1.0)

    asyncio.run(live())


def test_no_portion_is_blamed_for_a_worker_that_closes_in_order():
    async def live():
        force = workforce("w")
        for _ in range(MOST_ATTEMPTS + 1):
            force.roster.closing = {"w"}
            force.outstanding = [outstanding(portion(3), "w")]
            assert await force.watch_silence()
        assert not force.failures.suspicion

    asyncio.run(live())


def test_only_workers_that_will_not_finish_their_work_are_unreachable():
    """A paused worker may go on; one whose work is overdue is waited for no longer."""

    async def live():
        facts = {
            w: WorkerFacts(w, w, "here", 0, is_paused=w == "paused") for w in ("well", "paused")
        }
        roster = Roster(None, b"", None, None, facts=facts)
        held = [outstanding(portion(n), w) for n, w in enumerate(("well", "paused", "gone"))]
        assert late_workers(held, 10.0, 10.0) == set()
        late = late_workers(held, 11.0, 10.0)
        assert late == {"well", "paused", "gone"}
        assert unreachable(held, roster, set()) == {"gone"}
        assert unreachable(held, roster, late) == {"paused", "gone"}
        roster.silent = {"well"}
        assert unreachable(held, roster, set()) == {"well", "gone"}
        reasons = [why_unreachable(worker, roster) for worker in ("gone", "paused", "well")]
        for reason, words in zip(
            reasons, ("was lost", "has paused", "answered no ping"), strict=True
        ):
            assert words in reason

    asyncio.run(live())


def test_the_oldest_pending_work_of_a_worker_is_suspected():
    async def live():
        done, *held = [outstanding(portion(n), "w", report() if n == 0 else None) for n in range(3)]
        other = outstanding(portion(9), "v")
        assert suspects([done, *held, other], {"w"}) == [held[0]]

    asyncio.run(live())


# Recoveries that bring the run no further


def test_returns_are_in_vain_where_the_run_comes_no_further():
    returns = Returns()
    vain = []
    for place in [(1, 8), (1, 7), (1, 8), (1, 9), (1, 5), (2, 3), (2, 3), (2, 1)]:
        returns.note(*place)
        vain.append(returns.in_vain)
    assert vain == [0, 1, 2, 0, 1, 0, 1, 2]


def test_recoveries_without_a_step_between_them_end_the_run():
    tried = []

    class Hopeless(Recovery):
        async def _recover(self, why):
            tried.append(0)
            if len(tried) < 3:
                return
            raise ShardLost("lost again")

    run = types.SimpleNamespace(
        workforce=types.SimpleNamespace(
            failures=types.SimpleNamespace(suspicion="portion 3 failed")
        ),
        snapshots=types.SimpleNamespace(resume_hint=lambda: "there is no snapshot"),
        method=types.SimpleNamespace(progress_name="step"),
        progress=0,
    )
    recovery = Hopeless(run)
    asyncio.run(recovery.recover("first"))
    run.progress += 1
    asyncio.run(recovery.recover("second"))
    run.progress += 1
    with pytest.raises(
        RunLost, match="3 recoveries in a row without a step.*portion 3 failed; there is no"
    ):
        asyncio.run(recovery.recover("third"))
    assert len(tried) == 2 + MOST_RECOVERIES


# Runs


class Poisonous(CountingModel):
    """At one row it fails, or kills its worker and leaves a file in `deaths`."""

    def __init__(self, deaths=None):
        super().__init__(ROWS, seconds=0.001)
        self.deaths = deaths

    def loss_and_gradient(self, parameters, inputs, targets, **rest):
        if BAD_ROW in inputs:
            if self.deaths is None:
                raise ArithmeticError("poison")
            if len(list(self.deaths.iterdir())) < ENDLESS:
                (self.deaths / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().loss_and_gradient(parameters, inputs, targets, **rest)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("giving-up") / "store.zarr", ROWS)


def train(algorithm, client, store, model, **options):
    settings = {
        "downpour": {"optimizer": dbdask.sgd(20.0), "batch_size": 20, "epochs": 4},
        "sandblaster": {"l2": 1 / ROWS, "portion_size": 50, "tolerance": 0.0, "iterations": 30},
    }[algorithm]
    return getattr(dbdask, algorithm)(
        model, counted(store), client=client, progress=False, **(settings | options)
    )


NAMED = {
    "downpour": r"portion \d+ of epoch 0 \(blocks .*\) failed 5 times, the last time",
    "sandblaster": r"bundle \d+ \(portions .*\) failed 5 times, the last time in portion 15",
}


@pytest.mark.parametrize("algorithm", NAMED)
def test_a_portion_that_fails_wherever_it_is_tried_is_named(threads_client, store, algorithm):
    match = NAMED[algorithm] + r".*with ArithmeticError\('poison'\)"
    with pytest.raises(WorkerError, match=match):
        train(algorithm, threads_client, store, Poisonous())
    assert_nothing_left(threads_client)


@pytest.mark.chaos
@pytest.mark.parametrize("algorithm", NAMED)
@pytest.mark.parametrize("copies", [1, 2])
def test_a_portion_that_kills_its_workers_is_named(store, tmp_path, algorithm, copies):
    with (
        dask.config.set({"dbdask.lease": "2s"}),
        LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        deaths = tmp_path / "deaths"
        deaths.mkdir()
        options = {"shard_copies": copies, "checkpoint": str(tmp_path / "run.zarr")}
        if copies == 1:  # and the shards are out of its way
            options |= {"shard_workers": "0", "workers": ["1", "2", "3"]}
        with pytest.raises((WorkerError, ShardLost), match=r"portion.*failed \d times.*was lost"):
            train(algorithm, client, store, Poisonous(deaths), **options)
        assert MOST_RECOVERIES < len(list(deaths.iterdir())) < ENDLESS
        wait_until(lambda: len(addresses(client)) == 4)
        assert_nothing_left(client)
        assert_workers_run_tasks(client)


@pytest.mark.filterwarnings("ignore:the run did not end:dbdask.TrainingWarning")
@pytest.mark.parametrize("algorithm", NAMED)
def test_a_loss_before_the_first_snapshot_says_that_the_same_call_starts_anew(
    threads_client, store, tmp_path, algorithm
):
    async def lose(self, *arguments):
        raise ShardLost("as if a worker had left")

    def again():
        return train(algorithm, threads_client, store, CountingModel(ROWS), checkpoint=path)

    path = str(tmp_path / "run.zarr")
    match = (
        r"as if a worker had left; no snapshot is in .*run\.zarr' yet: the same call starts anew"
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ShardLost, match=match):
        patch.setattr(ParameterServer, "place", lose)
        again()
    assert len(again().history["step"]) > 0
    assert_nothing_left(threads_client)


def test_a_scheduler_that_is_lost_before_the_first_snapshot_says_so_too(threads_client):
    snapshots = Snapshots(None, "run.zarr", 1.0, None)
    guard = Guard(threads_client, snapshots, AwakeClock())
    guard.missed = MISSED_PINGS
    assert "no snapshot is in 'run.zarr' yet" in str(guard._loss())
    snapshots.committed = object()
    assert "the last snapshot is in 'run.zarr'" in str(guard._loss())


@pytest.mark.parametrize("error", [OSError("reset by peer"), SchedulerLost("gives no answer")])
def test_a_question_to_a_dying_scheduler_that_breaks_first_is_its_loss(error):
    """The connections to a process that dies break one after the other, on a busy machine."""

    async def lose():
        loop = asyncio.get_running_loop()
        broken = asyncio.Event()

        async def never(**question):
            await loop.create_future()

        async def work():
            loop.call_later(0.01, broken.set)
            raise error

        client = types.SimpleNamespace(
            status="running",
            scheduler_comm=types.SimpleNamespace(closed=broken.is_set),
            scheduler=types.SimpleNamespace(address="tcp://there", ncores=never),
        )
        await guarded(client, work(), Snapshots(None, None, 1.0, None), AwakeClock())

    with pytest.raises(ShardLost, match="scheduler tcp://there closed its connection") as raised:
        asyncio.run(lose())
    assert raised.value.__cause__ is error


TAKEN = {"downpour": "start_push", "sandblaster": "contribute"}


@pytest.mark.parametrize("algorithm", TAKEN)
def test_a_run_whose_pushes_are_never_taken_ends(threads_client, store, monkeypatch, algorithm):
    times = []

    def lost(self, *arguments):
        times.append(0)
        assert len(times) < 100  # the run would have no end
        raise ShardLost("as if a shard were gone")

    monkeypatch.setattr(ServerLink, TAKEN[algorithm], lost)
    match = r"3 recoveries in a row without a \w+: .*as if a shard were gone"
    with pytest.raises(ShardLost, match=match):
        train(algorithm, threads_client, store, CountingModel(ROWS))
    assert_nothing_left(threads_client)


def test_sandblaster_does_not_go_back_for_ever(threads_client, store, tmp_path, monkeypatch):
    accept, times = Sandblaster._accept, []

    async def lose_a_shard(self, run):
        if self.point.iteration == 1 and len(times) < ENDLESS:
            times.append(0)
            run.server.give_up([0])
            raise ShardLost("as if a shard were gone")
        return await accept(self, run)

    monkeypatch.setattr(Sandblaster, "_accept", lose_a_shard)
    path = str(tmp_path / "run.zarr")
    with pytest.raises(ShardLost, match=r"went back 3 times .* at iteration 1: as if.*resume=True"):
        train("sandblaster", threads_client, store, LinearCounting(ROWS), checkpoint=path)
    assert len(times) == MOST_RECOVERIES + 1
    assert_nothing_left(threads_client)


def test_downpour_does_not_go_back_for_ever(threads_client, store, tmp_path, monkeypatch):
    check, drop, times = Run.check_background, ParameterServer.drop_lost, []

    async def lose_all(self):
        if self.tally.applied >= 10 and len(times) < ENDLESS:
            times.append(0)
            raise ShardLost("as if all were gone")
        await check(self)

    async def drop_all(self, workers):
        for index, copies in enumerate(self._copies):
            self._release_copies(index, copies)
        return await drop(self, workers)

    monkeypatch.setattr(Run, "check_background", lose_all)
    monkeypatch.setattr(ParameterServer, "drop_lost", drop_all)
    path = str(tmp_path / "run.zarr")
    with pytest.raises(ShardLost, match=r"went back 3 times .* after \d+ updates.*resume=True"):
        train("downpour", threads_client, store, CountingModel(ROWS), checkpoint=path)
    assert len(times) >= MOST_RECOVERIES + 1
    assert_nothing_left(threads_client)
