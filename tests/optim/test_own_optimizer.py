"""An update rule that a user wrote, from outside: it trains, resumes, and is told what is wrong."""

import json
import math
import os
import sys
import types

import numpy as np
import pytest
from test_downpour import client, flat, labelled, network, stop_after, store, train  # noqa: F401

import dbdask
from dbdask.optim.optimizer_checks import checked_optimizer, initial_slots
from dbdask.optim.optimizers import Sgd
from dbdask.storage import checkpoint


class Signum:
    """Sign descent with momentum (Bernstein et al. 2018): a plain class, of no library."""

    slots = ("average",)

    def __init__(self, rate=0.01, beta=0.5):
        self.rate, self.beta = rate, beta

    def update(self, parameters, gradient, slots, step):
        average = slots["average"]
        average *= self.beta
        average += (1 - self.beta) * gradient
        parameters -= np.float32(self.rate) * np.sign(average)


class Remembering(Signum):
    """Keeps a buffer in the object, as a careful author does: one copy a shard, one thread."""

    def __init__(self):
        super().__init__()
        self.buffer = None

    def update(self, parameters, gradient, slots, step):
        if self.buffer is None:
            self.buffer = np.empty_like(gradient)
        assert self.buffer.shape == gradient.shape, "another shard's rule"
        np.copyto(self.buffer, gradient)
        super().update(parameters, self.buffer, slots, step)
        assert np.array_equal(self.buffer, gradient)


class AsAdagrad:
    """What `dbdask.adagrad` does, written without it, with a first content of its slot."""

    slots = ("accumulator",)

    def initial_slot(self, name, size):
        return [0.5] * size

    def update(self, parameters, gradient, slots, step):
        slots["accumulator"] += gradient * gradient
        parameters -= (
            gradient / (np.sqrt(slots["accumulator"]) + np.float32(1e-7)) * np.float32(0.1)
        )


class Once(Signum):
    """Fails at one update the first time that any process comes to it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def update(self, parameters, gradient, slots, step):
        if step == 5:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                raise ArithmeticError("the first time")
        super().update(parameters, gradient, slots, step)


@pytest.mark.parametrize(
    "client", [pytest.param("threads", marks=pytest.mark.slow), "processes"], indirect=True
)
def test_a_plain_class_trains_in_the_shards(client, store):  # noqa: F811
    result = train(client, store, optimizer=Signum(), epochs=3, shards=2)
    assert result.status.ok
    assert result.evaluate(labelled(store))["accuracy"] > 0.85


def test_a_class_of_the_main_program_travels_by_value(process_client, store):  # noqa: F811
    source = {
        "__name__": "__main__",
        "np": np,
    }
    exec(
        "class Mine:\n"
        "    slots = ()\n"
        "    def update(self, parameters, gradient, slots, step):\n"
        "        parameters -= np.float32(0.1) * gradient\n",
        source,
    )
    options = {"replicas": 1, "shards": 1}
    mine = train(process_client, store, optimizer=source["Mine"](), **options)
    np.testing.assert_array_equal(flat(mine), flat(train(process_client, store, **options)))


@pytest.mark.parametrize("rule", ["class", "schedule"])
def test_a_worker_that_cannot_import_the_rule_is_named(process_client, store, rule):  # noqa: F811
    module = types.ModuleType("only_in_this_process")
    exec("class Mine:\n    slots = ()\n    def update(self, p, g, s, t): p -= g", vars(module))
    exec("def schedule(step): return 0.1", vars(module))
    optimizer = module.Mine() if rule == "class" else dbdask.adam(module.schedule)
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(
            dbdask.WorkerError,
            match="worker tcp.* cannot import .*only_in_this_process.*install the same packages",
        ):
            train(process_client, store, optimizer=optimizer)
    finally:
        del sys.modules[module.__name__]


def test_every_shard_has_a_rule_of_its_own(threads_client, store):  # noqa: F811
    result = train(threads_client, store, optimizer=Remembering(), shards=4)
    assert result.status.ok


def test_an_own_rule_equals_ours(threads_client, store):  # noqa: F811
    ours = dbdask.adagrad(0.1, initial_accumulator=0.5)
    results = [
        flat(train(threads_client, store, optimizer=rule, replicas=1, shards=2))
        for rule in (ours, AsAdagrad())
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_an_own_rule_resumes_to_the_bit_with_its_slots(threads_client, store, tmp_path):  # noqa: F811
    path = str(tmp_path / "run.zarr")
    options = {"replicas": 1, "epochs": 3}
    whole = train(threads_client, store, optimizer=Signum(), **options)
    stop_after(threads_client, store, path, 2, optimizer=Signum(), **options)
    assert checkpoint.attributes(path)["optimizer"] == {"class": "Signum", "slots": ["average"]}
    assert "average" in checkpoint.vector_names(path, checkpoint.latest(path).group)
    again = {"checkpoint": path, "resume": True, **options}
    with pytest.raises(dbdask.CheckpointError, match="optimizer.*Signum.*there.*Once.*here.*same"):
        train(threads_client, store, optimizer=Once(""), **again)
    with pytest.raises(dbdask.CheckpointError, match="another optimizer.*Signum.* and 'adam' here"):
        train(threads_client, store, optimizer=dbdask.adam(0.1), **again)
    resumed = train(threads_client, store, optimizer=Signum(), **again)
    np.testing.assert_array_equal(flat(whole), flat(resumed))


def test_an_update_that_raises_ends_the_run_which_can_be_gone_on_with(
    threads_client,
    store,  # noqa: F811
    tmp_path,
):
    options = {"replicas": 1, "shards": 1}
    whole = train(threads_client, store, optimizer=Signum(), **options)
    once, path = Once(str(tmp_path / "raised")), str(tmp_path / "run.zarr")
    with pytest.raises(ArithmeticError, match="the first time") as caught:
        train(threads_client, store, optimizer=once, checkpoint=path, **options)
    where, how = caught.value.__notes__
    assert where.startswith("in the optimizer's update 5 of parameters 0 to")
    assert how.endswith(f"go on from it with checkpoint={path!r}, resume=True")
    again = train(threads_client, store, optimizer=once, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(flat(whole), flat(again))


class AlwaysFails(Signum):
    def update(self, parameters, gradient, slots, step):
        if step == 3:
            raise ArithmeticError("the step is three")
        super().update(parameters, gradient, slots, step)


def test_a_rule_that_always_fails_ends_the_run_with_its_error(threads_client, store):  # noqa: F811
    with pytest.raises(Exception, match="the step is three"):
        train(threads_client, store, optimizer=AlwaysFails(), replicas=1)


# What is no rule


class Rebinds:
    slots = ()

    def update(self, parameters, gradient, slots, step):
        parameters = parameters - gradient


class Returns:
    slots = ()

    def update(self, parameters, gradient, slots, step):
        return parameters - gradient


class WritesGradient:
    slots = ()

    def update(self, parameters, gradient, slots, step):
        gradient *= 0.1
        parameters -= gradient


class TwoArguments:
    slots = ()

    def update(self, parameters, gradient):
        parameters -= gradient


class LongSlot(AsAdagrad):
    def initial_slot(self, name, size):
        return np.zeros(size + 1)


class WarmsUp:
    """Does nothing for ten steps: that is allowed."""

    slots = ()

    def update(self, parameters, gradient, slots, step):
        parameters -= gradient * np.float32(max(0, step - 10))


class EndsEarly(WarmsUp):
    """Has a list of rates, the first ones zero: that is allowed, too."""

    def update(self, parameters, gradient, slots, step):
        parameters -= gradient * np.float32([0, 0, 1, 1][step])


def with_slots(slots):
    rule = Signum()
    rule.slots = slots
    return rule


def unpicklable():
    rule = Signum()
    rule.lock = (n for n in range(3))
    return rule


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: "adam", TypeError, "optimizer must be dbdask.sgd, .* got 'adam'"),
        (lambda: Signum, TypeError, "optimizer must be .* with slots and update.* got <class"),
        (lambda: object(), TypeError, "optimizer must be .* with slots and update"),
        (lambda: with_slots("average"), TypeError, "slots must be a tuple of names, got 'average'"),
        (lambda: with_slots([3]), TypeError, r"slots must be a tuple of names, got \[3\]"),
        (lambda: with_slots(["a/b"]), ValueError, "slots must be unique names .* got .*a/b"),
        (lambda: with_slots(["best"]), ValueError, "other than parameters, best, commit"),
        (lambda: with_slots(["a", "a"]), ValueError, "slots must be unique"),
        (unpicklable, TypeError, "optimizer must be picklable.*generator"),
        (Rebinds, ValueError, "changed neither parameters nor slots.*in place.*not parameters ="),
        (Returns, TypeError, r"in place.*return None, it returned an array of shape \(8,\)"),
        (WritesGradient, ValueError, "read-only"),
        (TwoArguments, TypeError, r"must take \(parameters, gradient, slots, step\)"),
        (LongSlot, ValueError, r"initial_slot\('accumulator', 8\) must have shape \(8,\).*\(9,\)"),
    ],
)
def test_what_is_no_rule_is_named_before_training(make, error, message):
    with pytest.raises(error, match=message):
        checked_optimizer(make())


def test_errors_of_the_trial_say_where_they_are_from():
    with pytest.raises(ValueError) as caught:
        checked_optimizer(WritesGradient())
    assert caught.value.__notes__ == [
        "in a trial of optimizer on eight parameters, before training"
    ]


@pytest.mark.parametrize("make", [Signum, AsAdagrad, WarmsUp, EndsEarly, lambda: dbdask.sgd(0.1)])
def test_rules_pass_and_are_not_changed_by_the_trial(make):
    rule = make()
    before = json.dumps(vars(rule), default=repr)
    assert checked_optimizer(rule) is rule
    assert json.dumps(vars(rule), default=repr) == before


def test_a_run_tries_the_rule_first(threads_client, store):  # noqa: F811
    with pytest.raises(ValueError, match="changed neither"):
        train(threads_client, store, optimizer=Rebinds())


class Halved(Sgd):
    """A subclass of one of ours is the user's own: its `update` counts."""

    def update(self, parameters, gradient, slots, step):
        super().update(parameters, gradient * 0.5, slots, step)


def test_a_subclass_of_ours_is_applied_by_its_own_update(threads_client, store):  # noqa: F811
    options = {"replicas": 1, "shards": 1}
    halved = train(threads_client, store, optimizer=Halved(0.2), **options)
    plain = train(threads_client, store, optimizer=dbdask.sgd(0.1), **options)
    np.testing.assert_allclose(flat(halved), flat(plain), atol=1e-6)


def test_slots_without_a_first_content_are_zero_and_float32():
    (average,) = initial_slots(Signum(), 3).values()
    assert average.tolist() == [0, 0, 0] and average.dtype == np.float32
    (sums,) = initial_slots(AsAdagrad(), 2).values()
    assert sums.tolist() == [0.5, 0.5] and sums.dtype == np.float32
    assert math.isclose(initial_slots(dbdask.adagrad(1), 1)["accumulator"][0], 0)
