"""Errors of users' code, whatever their type: they are counted, they come out, and are no loss."""

import asyncio
import concurrent.futures
import pickle
import re
import threading
import traceback
import weakref

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from counting import CountingModel
from distributed import Reschedule
from distributed.core import clean_exception, error_message
from test_downpour import assert_nothing_left, counted, network, write_store

import dbdask
from dbdask.errors import ModelError, RaisedInShard, ShardLost, Stale, WorkerError
from dbdask.rpc.portable import MOST_BYTES, MOST_ERRORS, MOST_FRAMES, portable, portable_errors
from dbdask.users_code import UsersCode

ROWS = 200


class Unpicklable(Exception):
    def __reduce__(self):
        raise asyncio.CancelledError


class EndlessPickle(Exception):
    """Its pickle is a list without an end."""

    def __reduce__(self):
        return list, (), None, (bytes(1000) for _ in iter(int, 1))


class Unspeakable(Exception):
    def __repr__(self):
        raise SystemExit


def its_own_cause():
    error = ValueError("mine")
    error.__cause__ = error
    return error


def in_a_circle():
    first, second = ValueError("mine"), KeyError("other")
    first.__cause__, second.__context__ = second, first
    return first


def in_its_own_group():
    inner = ValueError("mine")
    group = ExceptionGroup("several", [inner])
    group.__cause__ = inner
    inner.__context__ = group
    return group


def long_chain():
    error = last = ValueError("mine")
    for number in range(5000):
        last.__cause__ = KeyError(number)
        last = last.__cause__
    return error


def deep():
    def down():
        down()

    try:
        down()
    except RecursionError as error:
        return error


SIGNALS = {
    "asyncio": asyncio.CancelledError,
    "cancelled": concurrent.futures.CancelledError,
    "keyboard": KeyboardInterrupt,
    "exit": SystemExit,
    "generator": GeneratorExit,
    "iteration": StopIteration,
    "lost": lambda: ShardLost("mine"),
    "stale": lambda: Stale("mine"),
}
ODD = {
    "reschedule": Reschedule,
    "own cause": its_own_cause,
    "circle": in_a_circle,
    "group": in_its_own_group,
    "chain": long_chain,
    "deep": deep,
    "unpicklable": Unpicklable,
    "endless": EndlessPickle,
    "unspeakable": Unspeakable,
    "large": lambda: ValueError("x" * (2 * MOST_BYTES)),
}
ORDINARY = {
    "key": lambda: KeyError("mine"),
    "system": lambda: OSError("mine"),
    "runtime": lambda: RuntimeError("mine"),
    "time": lambda: TimeoutError("mine"),
}


# How an error leaves a worker


def in_a_thread(function):
    """Call a function where Ctrl-C never comes; what it raised comes back."""
    raised = []

    def call():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def raising(make):
    def run():
        raise make()

    return run


@pytest.mark.parametrize("make", [*SIGNALS.values(), *ODD.values(), *ORDINARY.values()])
def test_every_error_of_a_task_can_be_sent(make):
    raised = in_a_thread(portable_errors(raising(make)))
    assert isinstance(raised, Exception)
    assert not isinstance(raised, (concurrent.futures.CancelledError, Reschedule, StopIteration))
    try:
        raise raised
    except Exception as error:
        message = error_message(error)
    _, received, _ = clean_exception(
        message["exception"].data, message["traceback"] and message["traceback"].data
    )
    # Dask's substitute for what cannot be pickled is an `Exception` that holds its repr.
    assert type(received) is type(raised) or type(make()) is EndlessPickle


@pytest.mark.parametrize("make", ORDINARY.values())
def test_an_error_that_can_be_sent_is_sent_as_it_is(make):
    error, cause = make(), ValueError("why")
    error.__cause__ = cause
    assert portable(error) is error and error.__cause__ is cause


def test_an_error_that_cannot_be_sent_is_named():
    for make in (*SIGNALS.values(), Reschedule, Unpicklable):
        error = make()
        assert isinstance(error, (ShardLost, Stale)) or repr(error) in str(portable(error))


@pytest.mark.parametrize("make", [its_own_cause, in_a_circle, in_its_own_group, long_chain])
def test_the_causes_of_an_error_have_an_end(make):
    error, count = portable(make()), 0
    waiting = [error]
    while waiting:
        current = waiting.pop()
        count += 1
        waiting += [e for e in (current.__cause__, current.__context__) if e is not None]
        assert count <= MOST_ERRORS
    assert "mine" in "".join(traceback.format_exception(portable(make())))


def test_an_error_that_is_sent_holds_no_vectors():
    held = []

    @portable_errors
    def fails():
        vector = np.zeros(3)
        held.append(weakref.ref(vector))
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("then") from error

    with pytest.raises(ValueError, match="then") as raised:
        fails()
    assert held[0]() is None
    assert isinstance(raised.value.__cause__, KeyError)


def test_the_ends_of_a_long_traceback_stay():
    error = portable(deep())
    frames = traceback.extract_tb(error.__traceback__)
    assert len(frames) == 2 * MOST_FRAMES
    assert [frames[0].name, frames[-1].name] == ["deep", "down"]


# Users' code


@pytest.mark.parametrize("make", SIGNALS.values())
def test_what_means_something_else_is_named_as_an_error_of_users_code(make):
    def run():
        with UsersCode("schedule"):
            raise make()

    raised = in_a_thread(run)
    assert type(raised) is RuntimeError and str(raised) == f"schedule raised {make()!r}"
    assert repr(raised.__cause__) == repr(make())


def test_other_errors_of_users_code_come_out_as_they_are_and_so_does_ctrl_c():
    for error in (KeyError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, UsersCode("schedule"):
            raise error
        assert caught.value is error


def test_what_a_shard_raised_travels():
    again = pickle.loads(pickle.dumps(RaisedInShard(KeyError("mine"))))
    assert repr(again.error) == "KeyError('mine')"


# Runs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("raised") / "store.zarr", ROWS)


class Raising(CountingModel):
    """A model that raises, in one of its methods."""

    def __init__(self, make, where):
        super().__init__(ROWS)
        self.make, self.where = make, where

    def initial_parameters(self, *arguments):
        self.come_by("initial_parameters")
        return super().initial_parameters(*arguments)

    def loss_and_gradient(self, *arguments, **options):
        self.come_by("loss_and_gradient")
        return super().loss_and_gradient(*arguments, **options)

    def predict(self, *arguments):
        self.come_by("predict")
        return super().predict(*arguments)

    def come_by(self, where):
        if where == self.where:
            raise self.make()


def train(algorithm, client, store, model, **options):
    settings = {
        "downpour": {"optimizer": dbdask.sgd(20.0), "batch_size": 20},
        "sandblaster": {"portion_size": 50, "iterations": 2},
    }[algorithm]
    examples = counted(store)
    return getattr(dbdask, algorithm)(
        model, examples, client=client, progress=False, **(settings | options)
    )


PORTIONS = [
    ("downpour", SIGNALS["asyncio"]),
    ("sandblaster", SIGNALS["cancelled"]),
    ("downpour", SIGNALS["exit"]),
    ("sandblaster", SIGNALS["keyboard"]),
    ("downpour", SIGNALS["lost"]),
    ("sandblaster", SIGNALS["stale"]),
    ("downpour", SIGNALS["iteration"]),
    ("sandblaster", ODD["reschedule"]),
    ("downpour", ODD["own cause"]),
    ("sandblaster", ODD["deep"]),
    ("downpour", ORDINARY["key"]),
    ("sandblaster", ORDINARY["system"]),
]


@pytest.mark.parametrize(("algorithm", "make"), PORTIONS)
def test_whatever_a_model_raises_is_counted_and_named(
    process_client, store, algorithm, make, caplog
):
    with pytest.raises(WorkerError, match="failed 5 times, the last time") as caught:
        train(algorithm, process_client, store, Raising(make, "loss_and_gradient"))
    assert type(make()).__name__ in str(caught.value)
    assert "recovering" not in caplog.text and "never retrieved" not in caplog.text
    assert_nothing_left(process_client)


@pytest.mark.parametrize("make", [SIGNALS["exit"], SIGNALS["lost"], ORDINARY["system"]])
@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
def test_what_initial_parameters_raise_ends_the_run(threads_client, store, algorithm, make, caplog):
    with pytest.raises((RuntimeError, OSError), match="mine|raised SystemExit") as caught:
        train(algorithm, threads_client, store, Raising(make, "initial_parameters"))
    assert not isinstance(caught.value, (ShardLost, WorkerError))
    assert "setting up again" not in caplog.text
    assert_nothing_left(threads_client)


@pytest.mark.parametrize("make", [SIGNALS["asyncio"], SIGNALS["lost"]])
def test_what_a_model_raises_in_validation_is_counted_and_named(
    threads_client, store, make, caplog
):
    model = Raising(make, "predict")
    words = "of validation .*failed 5 times, .*model.predict raised.* on worker .*check_model"
    with pytest.raises(WorkerError, match=words):
        train("downpour", threads_client, store, model, validation=counted(store))
    assert "recovering" not in caplog.text
    assert_nothing_left(threads_client)


ALGORITHMS = {
    "downpour": {"batch_size": 20, "epochs": 500, "checkpoint": None},
    "sandblaster": {"iterations": 500, "tolerance": 0.0},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_data_that_are_lost_for_good_are_named(threads_client, algorithm):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(50, 6)).astype(np.float32) for _ in range(4)]
    held = threads_client.scatter(parts, hash=False)
    blocks = [da.from_delayed(part, (50, 6), dtype="f4") for part in held]
    values, labels = da.concatenate(blocks), rng.integers(0, 3, 200)
    data = xr.Dataset({"x": (("row", "feature"), values), "label": ("row", labels)})
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")

    def forget(dask_scheduler, keys, client):
        dask_scheduler.client_releases_keys(keys, client, "test")

    def lose(record):
        keys = [future.key for future in held]
        threads_client.run_on_scheduler(forget, keys=keys, client=threads_client.id)

    words = "failed 5 times, .* persisted or scattered data .* are lost.*give the path of a store"
    options = {"client": threads_client, "callbacks": [lose], "progress": False} | ALGORITHMS[
        algorithm
    ]
    with pytest.raises(WorkerError, match=words):
        getattr(dbdask, algorithm)(network(), examples, **options)
    with pytest.raises(WorkerError, match="a pass over the data failed.* data .* are lost"):
        examples.check(client=threads_client)
    assert_nothing_left(threads_client)


class Rule:
    """An update rule that raises at its third update."""

    slots = ()

    def __init__(self, make):
        self.make = make

    def update(self, parameters, gradient, slots, step):
        if step == 3:
            raise self.make()
        parameters -= gradient


class Schedule:
    """A rate that raises at the third update."""

    def __init__(self, make):
        self.make = make

    def __call__(self, step):
        if step == 3:
            raise self.make()
        return 20.0


OWN = [*ORDINARY.values(), SIGNALS["iteration"], SIGNALS["lost"], SIGNALS["exit"]]


def scheduled(make):
    return dbdask.sgd(Schedule(make))


@pytest.mark.parametrize(
    ("give", "make"),
    [
        *((Rule, make) for make in OWN),
        (scheduled, OWN[0]),
        *(pytest.param(scheduled, make, marks=pytest.mark.slow) for make in OWN[1:]),
    ],
)
def test_what_an_optimiser_raises_ends_the_run_with_it(
    threads_client, store, tmp_path, give, make, caplog
):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "shard_copies": 2, "optimizer": give(make)}
    with pytest.raises(Exception) as caught:
        train("downpour", threads_client, store, CountingModel(ROWS), **options)
    error, own = caught.value, make()
    if any(make is signal for signal in SIGNALS.values()):
        assert type(error) is RuntimeError and str(error) == f"optimizer raised {own!r}"
    else:
        assert type(error) is type(own) and error.args == own.args
    where, how = error.__notes__
    assert re.fullmatch("in the optimizer's update 3 of parameters [0-9]+ to [0-9]+", where)
    assert f"checkpoint={path!r}, resume=True" in how
    assert "recovering" not in caplog.text and "failed" not in caplog.text
    assert_nothing_left(threads_client)


class FirstSlot(Rule):
    """An update rule that raises when it is to fill its slot for a model's parameters."""

    slots = ("velocity",)

    def initial_slot(self, name, size):
        if size > 8:  # those of the trial before a run
            raise self.make()
        return np.zeros(size, np.float32)


@pytest.mark.parametrize(
    ("give", "make"),
    [
        (Rule, SIGNALS["lost"]),
        (scheduled, SIGNALS["stale"]),
        (FirstSlot, SIGNALS["lost"]),
        (Rule, SIGNALS["exit"]),
        (FirstSlot, SIGNALS["iteration"]),
        (scheduled, ORDINARY["key"]),
    ],
)
def test_what_a_local_optimiser_raises_is_counted_and_named(
    threads_client, store, give, make, caplog
):
    options = {"optimizer": dbdask.sgd(1.0), "local_optimizer": give(make)}
    words = f"failed 5 times, the last time .*{re.escape(repr(make()))}"
    with pytest.raises(WorkerError, match=words) as caught:
        train("downpour", threads_client, store, CountingModel(ROWS), **options)
    is_signal = any(make is signal for signal in SIGNALS.values())
    assert ("local_optimizer raised" in str(caught.value)) == is_signal
    assert "recovering" not in caplog.text
    assert_nothing_left(threads_client)


def test_an_optimiser_in_another_process_ends_the_run_too(process_client, store, caplog):
    with pytest.raises(KeyError, match="mine"):
        options = {"optimizer": Rule(ORDINARY["key"])}
        train("downpour", process_client, store, CountingModel(ROWS), **options)
    assert "recovering" not in caplog.text
    assert_nothing_left(process_client)


def test_a_run_that_ends_in_an_error_can_be_gone_on_with(threads_client, store, tmp_path):
    options = {"checkpoint": str(tmp_path / "run.zarr"), "replicas": 1, "epochs": 2}
    model, raising = CountingModel(ROWS), dbdask.sgd(Schedule(ORDINARY["key"]))
    with pytest.raises(KeyError):
        train("downpour", threads_client, store, model, optimizer=raising, **options)
    again = train("downpour", threads_client, store, model, resume=True, **options)
    np.testing.assert_array_equal(again.parameters["count"].values, 2)


class OwnDataError(dbdask.DataError):
    """A data error of a user's own, made of two arguments."""

    def __init__(self, row, why):
        super().__init__(f"row {row}: {why}")
        self.row, self.why = row, why

    def __reduce__(self):
        return OwnDataError, (self.row, self.why)


@pytest.mark.parametrize(
    ("make", "is_own"),
    [
        (lambda: OwnDataError(3, "odd"), True),
        (lambda: dbdask.DataError("row 3: odd"), False),
        (lambda: ModelError("row 3: odd"), False),
    ],
)
def test_an_error_of_a_users_type_comes_out_as_it_is_and_a_note_names_the_snapshot(
    threads_client, store, tmp_path, make, is_own
):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "epochs": 2}
    train("downpour", threads_client, store, CountingModel(ROWS), **(options | {"epochs": 1}))
    model = Raising(make, "loss_and_gradient")
    with pytest.raises(type(make()), match="row 3: odd") as caught:
        train("downpour", threads_client, store, model, resume=True, **options)
    hint = f"checkpoint={path!r}, resume=True"
    if is_own:
        assert caught.value.row == 3 and hint in caught.value.__notes__[-1]
    else:
        assert hint in str(caught.value) and str(caught.value.__cause__) == "row 3: odd"
    assert_nothing_left(threads_client)


PARSES = "import argparse\nargparse.ArgumentParser().parse_args(['--rate', '1'])\n"


def opened_as(text, name):
    """What a model is pickled as: on any thread but the main one a module is imported with it."""
    if threading.current_thread() is not threading.main_thread():
        exec(compile(text, name, "exec"), {"__name__": "mine"})
    return CountingModel(ROWS)


class OfAModule(CountingModel):
    """A model whose module is imported by the workers, of which no main thread imports it."""

    def __init__(self, text, name):
        super().__init__(ROWS)
        self.text, self.name = text, name

    def __reduce__(self):
        return opened_as, (self.text, self.name)


@pytest.mark.parametrize("cluster", ["threads_client", "process_client"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PARSES, r"SystemExit\(2\) was raised in mine.py, line 2.*if __name__ == \"__main__\""),
        ("\n\nraise KeyboardInterrupt", r"KeyboardInterrupt\(\) was raised in mine.py, line 3"),
    ],
    ids=["exit", "keyboard"],
)
def test_a_module_that_ends_its_process_when_it_is_imported_is_named(
    request, store, cluster, text, words
):
    client = request.getfixturevalue(cluster)
    before = set(client.nthreads())
    with pytest.raises(WorkerError, match=rf"^worker \S+ cannot take part: {words}"):
        train("downpour", client, store, OfAModule(text, "mine.py"))
    assert set(client.run(int)) == before  # each of their loops answers
    assert_nothing_left(client)


def opened_in_no_task():
    if "Dask-Default" in threading.current_thread().name:
        raise ShardLost("mine")
    return CountingModel(ROWS)


class OpenedInNoTask(CountingModel):
    def __reduce__(self):
        return opened_in_no_task, ()


def test_what_unpickling_raises_in_a_task_is_counted_and_named(threads_client, store, caplog):
    words = r"failed 5 times, .*unpickling the model or the data raised ShardLost\('mine'\)"
    with pytest.raises(WorkerError, match=words):
        start = xr.Dataset({"count": ("example", np.zeros(ROWS, np.float32))})
        train("downpour", threads_client, store, OpenedInNoTask(ROWS), parameters=start)
    assert "recovering" not in caplog.text
    assert_nothing_left(threads_client)
