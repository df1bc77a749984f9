"""Validation beside training: work like other work, and a best that is never NaN."""

import asyncio
import math
import threading
import types
from functools import partial

import numpy as np
import pytest
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store
from test_giving_up import outstanding, portion, workforce
from test_sandblaster import LinearCounting

import dbdask
from dbdask.errors import ModelError, WorkerError
from dbdask.metrics.scores import Score
from dbdask.run.failures import TRAIN, VALIDATION
from dbdask.run.outstanding import Outstanding
from dbdask.run.replica_places import VALIDATION_TASKS
from dbdask.run.run import Run
from dbdask.run.validating import Validator, finite_or_none
from dbdask.run.workforce import Workforce
from dbdask.worker.validation import ValidationReport

ROWS, BATCH = 200, 20
NAN = math.nan


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("validating") / "store.zarr", ROWS, chunk=20)


# As the run's own loop sees it


class Story:
    """A validator of `count` portions whose tasks are never run: a test ends them itself."""

    def __init__(self, count, *workers, keep="best", target_loss=None, last=None):
        self.force = workforce(*workers)
        self.force.roster._checked = set(workers)
        self.given, self.orders, self.records, self.stopped = [], [], [], []
        self.force.give = self._give
        cut = types.SimpleNamespace(contiguous=lambda: [portion(n) for n in range(count)])
        plan = types.SimpleNamespace(
            run="run",
            last=last,
            keep=keep,
            validation_cut=cut,
            validate_steps=None,
            validate_seconds=None,
            target_loss=target_loss,
            size=8,
        )
        server = types.SimpleNamespace(handle="first", order=self._order)
        snapshots = types.SimpleNamespace(drop=self._drop, committed=last)
        tally = types.SimpleNamespace(steps=0, record=lambda **values: self.records.append(values))
        self.server = server
        self.validator = Validator(plan, self.force, server, snapshots, tally, self.stopped.append)

    def _give(self, work, function, order, worker, *, take, take_back):
        task = asyncio.get_running_loop().create_future()
        self.given.append(order)
        out = Outstanding(work, worker, task, 0.0, take, take_back)
        self.force.outstanding.append(out)

    async def _order(self, name, *arguments):
        self.orders.append((name, *arguments))

    async def _drop(self, number):
        self.orders.append(("drop", number))

    def end(self, **report):
        """The oldest task under way ends with a report."""
        out = self.force.outstanding.pop(0)
        return out.take(ValidationReport(**report))

    async def validate(self, number, loss):
        self.validator.start(number, 0)
        while self.validator.is_busy:
            self.validator.hand_out()
            while self.force.outstanding:
                self.end(score=Score(loss, 1.0), finished=True)
            await self.validator.conclude()


def tell(story):
    asyncio.run(story())


def test_a_worker_has_few_validation_tasks_however_many_portions_there_are():
    async def story():
        told = Story(100, "a", "b")
        told.validator.start(1, 0)
        for _ in range(3):
            told.validator.hand_out()
            assert len(told.force.outstanding) == 2 * VALIDATION_TASKS
            assert len({out.worker for out in told.force.outstanding[:2]}) == 2
            told.end(score=Score(1.0, 1.0), finished=True)
        await told.validator.conclude()
        assert told.validator.is_busy and not told.records

    tell(story)


def test_training_neither_waits_for_a_validation_nor_loses_its_places_to_it():
    async def story():
        told = Story(100, "a")
        told.validator.start(1, 0)
        told.validator.hand_out()
        assert told.force.outstanding and not told.force.training
        assert told.force.idle_places(None) == ["a"] and len(told.force.free_places(None)) > 1
        told.force.give_up_all(TRAIN)
        assert told.force.outstanding and not told.force.late_pushes_possible

    tell(story)


def test_a_validation_whose_read_was_given_up_ends_without_a_score_and_none_follows(caplog):
    async def story():
        told = Story(3, "a")
        told.validator.start(1, 0)
        told.validator.start(2, 1)
        told.validator.hand_out()
        told.end(score=Score(3.0, 1.0), finished=True)
        told.end(score=Score(), gave_up="chunk c/3/0")
        await told.validator.conclude()
        assert not told.force.outstanding and not told.validator.is_busy and not told.records
        assert told.orders == [("drop", 1), ("drop", 2)]
        told.validator.tally.steps = 7
        assert not told.validator.stale

    tell(story)
    assert "ends without a score: it waits for chunk c/3/0" in caplog.text


def test_a_validation_that_was_suspended_goes_on_where_the_shards_are_now():
    async def story():
        told = Story(3, "a")
        told.validator.start(1, 0)
        told.validator.hand_out()
        late = told.force.outstanding[0]
        told.end(score=Score(3.0, 1.0), finished=True)
        told.validator.suspend()
        assert not told.force.outstanding and not told.force.late_pushes_possible
        told.server.handle = "second"
        assert late.task is not None
        told.validator.hand_out()
        assert sorted(order.portion.number for order in told.given[-2:]) == [1, 2]
        assert {order.handle for order in told.given[-2:]} == {"second"}
        while told.force.outstanding:
            told.end(score=Score(3.0, 1.0), finished=True)
        await told.validator.conclude()
        assert [values["validation_loss"] for values in told.records] == [3.0]

    tell(story)


def test_a_lost_shard_is_trouble_and_its_portion_is_not_counted():
    async def story():
        told = Story(1, "a")
        told.validator.start(1, 0)
        told.validator.hand_out()
        assert told.end(score=Score(9.0, 9.0), trouble="ShardLost: it was there") != ""
        await told.validator.conclude()
        assert told.validator.is_busy
        told.validator.give_up()
        assert not told.validator.is_busy and told.validator.stale

    tell(story)


def test_a_lost_worker_counts_against_its_oldest_training_and_its_oldest_validation():
    """Which of the two it had begun is not known; only one that kills workers is never finished."""

    async def story():
        told = Story(2, "a")
        told.force.outstanding = [outstanding(portion(n), "a") for n in (7, 8)]
        told.validator.start(1, 0)
        told.validator.hand_out()
        for _ in range(4):
            told.force._blame({"a"})
        blamed = {name: len(words) for name, words in told.force.failures._by_portion.items()}
        assert blamed == {(TRAIN, (0, 7)): 4, (VALIDATION, (0, 0)): 4}
        told.force.failures.forget(portion(7))
        words = "portion 0 of validation .* failed 5 times.* worker a answered no ping"
        with pytest.raises(WorkerError, match=words):
            told.force._blame({"a"})

    tell(story)


# NaN is never best


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([NAN, 2.0], 2.0),
        ([NAN, 2.0, NAN, 1.0, NAN, 3.0], 1.0),
        ([math.inf, 2.0, -math.inf], 2.0),
        ([NAN, math.inf], None),
    ],
)
def test_a_loss_that_is_not_finite_is_never_best(losses, best):
    async def story():
        told = Story(2, "a")
        for number, loss in enumerate(losses):
            await told.validate(number, loss)
        assert told.validator.best == best and told.validator.has_best == (best is not None)
        chosen = [order[1] for order in told.orders if order[0] == "keep_best"]
        assert chosen == [
            n
            for n, loss in enumerate(losses)
            if math.isfinite(loss) and loss < min([math.inf, *filter(math.isfinite, losses[:n])])
        ]
        assert len(told.records) == len(losses)
        assert [order[1] for order in told.orders if order[0] == "drop"] == list(range(len(losses)))

    tell(story)


def test_a_best_of_nan_that_an_older_version_kept_is_none():
    assert [finite_or_none(best) for best in (NAN, math.inf, None, 0.5)] == [None, None, None, 0.5]
    last = types.SimpleNamespace(state={"best": NAN}, path="path", group="group")

    async def story():
        told = Story(1, "a", last=last)
        assert told.validator.best is None
        await told.validate(1, 5.0)
        assert told.validator.best == 5.0
        await told.validator.mend(lost=True)
        assert told.validator.best is None
        assert ("restore_best", "path", "group", False) in told.orders

    tell(story)


# A whole run


class Scored(CountingModel):
    """A counting model whose loss on the validation examples is what `of` says of the counts."""

    def __init__(self, of):
        super().__init__(ROWS)
        self.of = of

    def loss_only(self, parameters, inputs, targets, *, weights, seed):
        return len(inputs) * self.of(float(parameters[:BATCH].mean()))


def nan_at_first(epochs, counts):
    """NaN until so many epochs were applied, and then larger by one each epoch."""
    return NAN if counts < epochs else counts


def train(client, store, model, **options):
    settings = {"optimizer": dbdask.sgd(float(BATCH)), "batch_size": BATCH, "epochs": 3}
    settings |= {"validation": counted(store), "progress": False, "shards": 2}
    return dbdask.downpour(model, counted(store), client=client, **(settings | options))


def counts_of(result):
    return set(np.unique(result.parameters["count"].values))


def test_a_later_finite_loss_wins_over_one_of_nan(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    model = Scored(partial(nan_at_first, 2))
    result = train(threads_client, store, model, keep="best", checkpoint=path)
    assert counts_of(result) == {2.0}
    again = train(threads_client, store, model, keep="best", checkpoint=path, resume=True, epochs=4)
    assert counts_of(again) == {2.0}
    assert_nothing_left(threads_client)


def test_where_no_loss_is_finite_the_last_parameters_are_kept_and_the_user_is_told(
    threads_client, store, tmp_path
):
    path = str(tmp_path / "run.zarr")
    model = Scored(partial(nan_at_first, 5))
    options = {"keep": "best", "checkpoint": path}
    with pytest.warns(dbdask.TrainingWarning, match='keep="best" found no best parameters'):
        result = train(threads_client, store, model, **options)
    assert result.status.ok and counts_of(result) == {3.0}
    resumed = train(threads_client, store, model, resume=True, epochs=6, **options)
    assert counts_of(resumed) == {5.0}
    assert_nothing_left(threads_client)


class Failing(LinearCounting):
    """A model that fails so often when it predicts; workers in threads share the count."""

    left = 0
    lock = threading.Lock()

    def predict(self, parameters, inputs):
        with self.lock:
            Failing.left -= 1
            if Failing.left >= 0:
                raise RuntimeError("now and then")
        return super().predict(parameters, inputs)


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
def test_an_error_that_passes_is_tried_again(threads_client, store, algorithm, monkeypatch, caplog):
    monkeypatch.setattr(Failing, "left", 3)
    settings = {
        "downpour": {"batch_size": BATCH},
        "sandblaster": {"iterations": 2, "l2": 1 / ROWS},
    }[algorithm]
    result = getattr(dbdask, algorithm)(
        Failing(ROWS),
        counted(store),
        client=threads_client,
        validation=counted(store),
        progress=False,
        **settings,
    )
    assert result.status.ok and np.isfinite(result.history["validation_loss"].values[-1])
    assert "of validation" in caplog.text and "it is tried again" in caplog.text
    assert "recovering" not in caplog.text
    assert_nothing_left(threads_client)


class WrongShape(CountingModel):
    def predict(self, parameters, inputs):
        return super().predict(parameters, inputs)[: len(inputs) // 2]


def test_a_prediction_of_a_wrong_shape_is_named(threads_client, store):
    words = rf"predict must return one row .* {BATCH} examples, got shape \({BATCH // 2}, 1\)"
    with pytest.raises(ModelError, match=words):
        train(threads_client, store, WrongShape(ROWS))
    assert_nothing_left(threads_client)


def test_all_epochs_end_while_the_first_validation_is_under_way(threads_client, store, monkeypatch):
    places, finish, epochs = Workforce.validation_places, Run._finish_validation, []

    def places_later(force):
        return places(force) if epochs else []

    async def finish_noted(run):
        epochs.append(run.method.epoch)
        await finish(run)

    monkeypatch.setattr(Workforce, "validation_places", places_later)
    monkeypatch.setattr(Run, "_finish_validation", finish_noted)
    result = train(threads_client, store, CountingModel(ROWS))
    assert epochs[0] == 3 and result.status.ok
    assert np.isfinite(result.history["validation_loss"].values).sum() == 3
    assert_nothing_left(threads_client)
