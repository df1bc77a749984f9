"""A method that the library does not have, written from outside: synchronous SGD.

A step is the mean gradient over `n` portions at one point. The shards add it up, and move.
"""

from functools import partial

import cloudpickle
import numpy as np
import pytest
from acting import After, SlowUntil, over
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store
from test_recovery import cluster, kill_a_shard  # noqa: F401  (a fixture)

from dbdask.data.block_provider import BlockProvider
from dbdask.optim.optimizers import sgd
from dbdask.optim.vectors import Add
from dbdask.progress import Progress
from dbdask.run.plan import Plan
from dbdask.run.resuming import open_checkpoint, settings_of
from dbdask.run.run import Memory, Reached, Run, ShardKind
from dbdask.run.session import watch
from dbdask.run.training import train
from dbdask.schedule.bundles import Bundle
from dbdask.status import Status
from dbdask.worker.batch_replica import BundleOrder, SandblasterJob, accrue_bundle
from dbdask.worker.batch_shard import BatchShard

ROWS, PORTION, N, EPOCHS = 1200, 50, 4, 3


class SynchronousSGD:
    kind = ShardKind(BatchShard, sgd(1.0))
    rolls_back_alone = False
    progress_name = "step"
    snapshots_await_validation = False

    def __init__(self, portions, n, epochs, rate):
        self.portions, self.n, self.rate = portions, n, rate
        self.steps = epochs * len(portions) // n
        self.step = self.passes = 0
        self.begin_step()

    def begin_step(self):
        self.waiting, self.done, self.closing = None, {}, 0

    @property
    def epoch(self):
        return self.step * self.n // len(self.portions)

    def memory(self, plan, length):
        return Memory(12 * plan.size, 24 * length, None)

    def has_ended(self, run):
        return bool(run.stop_reason) or self.step >= self.steps

    async def advance(self, run):
        if self.waiting is None:
            await self.open(run)
        for worker in run.workforce.idle_places(run.plan.replicas):
            if self.waiting:
                order = BundleOrder(
                    run.plan.run, run.server.handle, self.waiting[0], "parameters", 1
                )
                bundle = self.waiting.pop(0)
                ends = {
                    "take": partial(self.take, bundle),
                    "take_back": partial(self.take_back, bundle),
                }
                run.workforce.give(bundle, accrue_bundle, order, worker, **ends)
        if len(self.done) < self.n:
            await run.take_in()
        if len(self.done) == self.n:
            await self.close(run)
            await run.attend(epoch_ended=False)

    async def open(self, run):
        self.passes += 1  # a number is never used again
        first = self.step * self.n % len(self.portions)
        portions = enumerate(self.portions[first : first + self.n])
        await run.server.order("open_pass", self.passes, ())
        self.waiting = [Bundle(self.passes, number, (portion,)) for number, portion in portions]

    async def close(self, run):
        weight = sum(report.weight for report in self.done.values())
        move = Add("parameters", -self.rate, "gradient")
        self.closing = self.closing or run.server.new_number()
        closed = self.passes, self.n, weight, "gradient", (move,)
        await run.server.command("close_pass", *closed, number=self.closing)
        self.step += 1
        self.begin_step()
        run.tally.steps, run.tally.applied = self.step, self.step
        run.tally.record(epoch=self.epoch)
        run.note_progress()

    def take(self, bundle, report):
        if report is not None and report.finished and bundle.evaluation == self.passes:
            self.done[bundle.number] = report
        else:
            self.take_back(bundle)
        return report.trouble if report is not None else ""

    def take_back(self, bundle):
        if bundle.evaluation == self.passes and bundle.number not in self.done:
            self.waiting.append(bundle)

    async def rest(self, run):
        """Between two steps nothing is under way."""

    async def go_on(self, run):
        """Nothing was held up."""

    def vectors(self):
        return ["parameters"]

    def state(self):
        return {"step": self.step, "applied": self.step}

    def restore(self, run, state):
        run.tally.rolled_back += self.step - state["step"]
        self.step = state["step"]
        self.begin_step()

    def reached(self, run):
        return Reached(self.step, f"after {self.step} steps")

    def end(self, run):
        return Status(run.stop_reason or "iterations", f"{self.step} steps are done")


def synchronous(client, store, path=None, callbacks=(), **options):
    examples = counted(store)
    model = SlowUntil(CountingModel(ROWS), over(callbacks), PORTION // 10)
    settings = settings_of("synchronous", model, examples)
    with open_checkpoint(path, False, settings) as opened:
        return trained(client, model, examples, settings, opened, callbacks, options)


def trained(client, model, examples, settings, opened, callbacks, options):
    plan = Plan(
        job=cloudpickle.dumps(SandblasterJob(model, examples.worker_side(), None, 1.0, PORTION, 0)),
        model=cloudpickle.dumps(model),
        size=model.layout.size,
        trained=model.layout.trained,
        provider=BlockProvider(examples.recipe, client),
        seed=0,
        settings=settings,
        path=opened.path,
        last=opened.last,
        ownership=opened.ownership,
        shards=2,
        **options,
    )
    # A step's mean gradient counts each of its examples once where the rate is their number.
    method = SynchronousSGD(examples.cut(PORTION, 1).contiguous(), N, EPOCHS, float(N * PORTION))
    run = Run(client, plan, method)
    outcome = watch(client, run, train(run), callbacks, Progress(False, ROWS))
    return run, outcome


def test_a_method_from_outside_applies_every_example_once_an_epoch(threads_client, store):
    _, outcome = synchronous(threads_client, store)
    np.testing.assert_allclose(outcome.parameters, EPOCHS, rtol=1e-5)
    assert outcome.status.message == f"{EPOCHS * ROWS // PORTION // N} steps are done"
    assert_nothing_left(threads_client)


@pytest.mark.parametrize("copies", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_method_from_outside_survives_a_killed_worker(cluster, store, tmp_path, copies):  # noqa: F811
    beside = After(4, lambda: kill_a_shard(cluster))
    path = str(tmp_path / "run.zarr") if copies == 1 else None
    run, outcome = synchronous(
        cluster, store, path, [beside], shard_copies=copies, snapshot_seconds=0.1
    )
    beside.done()
    np.testing.assert_allclose(outcome.parameters, EPOCHS, rtol=1e-5)
    assert run.tally.lost >= 1
    assert (run.tally.rolled_back == 0) or copies == 1
    assert_nothing_left(cluster)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("third") / "store.zarr", ROWS)
