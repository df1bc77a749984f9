"""What is wrong with a model from the start is said before any work begins, and not at its end."""

import numpy as np
import pytest
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store

import dbdask
from dbdask.errors import ModelError
from dbdask.models.layout import Layout, Parameter
from dbdask.models.member_checks import checked_initial

ROWS = 100
ALGORITHMS = {
    "downpour": {"optimizer": dbdask.sgd(20.0), "batch_size": 20},
    "sandblaster": {"iterations": 2},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("late") / "store.zarr", ROWS)


class Starting(CountingModel):
    """Starts with whatever a function makes of zeros, and can be trained only if told so."""

    def __init__(self, make, *, trains=False):
        super().__init__(ROWS)
        self.make, self.trains = make, trains

    def initial_parameters(self, seed, start, stop):
        return self.make(np.zeros(stop - start), start)

    def loss_and_gradient(self, *arguments, **options):
        assert self.trains, "work has begun"
        return super().loss_and_gradient(*arguments, **options)


def one(value):
    """Elements of which one, in the second half, is a value."""

    def make(zeros, start):
        zeros[70 - start : 71 - start if start <= 70 else 0] = value
        return zeros

    return make


WRONG = {
    r"must have shape \(50,\), got \(3,\)": lambda zeros, start: np.zeros(3),
    r"must have shape \(50,\), got \(50, 1\)": lambda zeros, start: zeros[:, None],
    r"must have shape \(50,\), got \(\)": lambda zeros, start: None,
    "must hold finite numbers, got complex128": lambda zeros, start: zeros.astype(complex),
    "must hold finite numbers, got <U32": lambda zeros, start: zeros.astype(str),
    r"\(seed, 50, 100\) must hold finite .* 'count' holds NaN": one(np.nan),
    "must hold finite numbers in float32, but 'count' holds NaN or infinity": one(1e300),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("message", WRONG)
def test_initial_parameters_are_looked_at_before_work_begins(
    threads_client, store, algorithm, message
):
    options = {"client": threads_client, "shards": 2, "progress": False} | ALGORITHMS[algorithm]
    with pytest.raises(ModelError, match=message):
        getattr(dbdask, algorithm)(Starting(WRONG[message]), counted(store), **options)
    assert_nothing_left(threads_client)


OPTIONS = {"optimizer": dbdask.sgd(20.0), "batch_size": 20, "progress": False}


def test_parameters_that_are_given_replace_what_is_not_finite(threads_client, store):
    model, ones = Starting(one(np.nan), trains=True), np.ones(ROWS, np.float32)
    result = dbdask.downpour(
        model, counted(store), client=threads_client, parameters=ones, **OPTIONS
    )
    np.testing.assert_array_equal(result.parameters["count"].values, 2)


def test_a_buffer_may_begin_with_infinity():
    parameters = Parameter("w", (2,), ("x",)), Parameter("bound", (1,), ("of",), "buffer")
    values = np.array([0.0, 1.0, np.inf])
    np.testing.assert_array_equal(checked_initial(values, Layout(parameters), 0, 3), values)
    with pytest.raises(ModelError, match="'w' holds NaN or infinity"):
        checked_initial(values[::-1], Layout(parameters), 0, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_dimension_of_two_lengths_is_refused_before_work_begins(threads_client, store, algorithm):
    model = Starting(lambda zeros, start: zeros)
    model.layout = Layout(
        (Parameter("count", (ROWS,), ("example",)), Parameter("more", (3,), ("example",)))
    )
    message = f"dimension 'example' the length {ROWS} in 'count' and 3 in 'more'"
    with pytest.raises(ValueError, match=message):
        getattr(dbdask, algorithm)(
            model, counted(store), client=threads_client, **ALGORITHMS[algorithm]
        )
    with pytest.raises(ModelError, match=message):
        dbdask.check_model(model, counted(store))
