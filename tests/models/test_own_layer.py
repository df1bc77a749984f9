"""A layer that a user wrote, from outside: in a network, trained, saved, resumed, and checked."""

from itertools import pairwise

import numpy as np
import pytest
from test_downpour import labelled, store  # noqa: F401
from test_network import by_differences, evaluated

import dbdask
from dbdask.models.drawing import BLOCK


class Scale:
    """Scales each input: one parameter, of the input's own shape."""

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return [("factor", input_shape)]

    def initial(self, input_shape):
        return {"factor": dbdask.Constant(1.5)}

    def forward(self, parameters, inputs):
        return inputs * parameters["factor"], (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        (inputs,) = kept
        into["factor"][...] = (gradient * inputs).sum(axis=0)
        return gradient * parameters["factor"]


class Flatten:
    """No parameter at all, and outputs that are a view of its inputs."""

    def output_shape(self, input_shape):
        return (int(np.prod(input_shape)),)

    def parameters(self, input_shape):
        return []

    def initial(self, input_shape):
        return {}

    def forward(self, parameters, inputs):
        return inputs.reshape(len(inputs), -1), (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        return gradient.reshape(kept[0].shape)


class Gated:
    """Three parameters: tanh of one product, times the logistic function of another."""

    def __init__(self, units):
        self.units = units

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            raise ValueError(f"inputs must have one dimension, got {input_shape}")
        return (self.units,)

    def parameters(self, input_shape):
        shape = (*input_shape, self.units)
        return [("value", shape), ("gate", shape, ("input", "unit")), ("bias", (self.units,))]

    def initial(self, input_shape):
        return {
            "value": dbdask.Uniform(0.5),
            "gate": dbdask.Normal(0.5),
            "bias": lambda stream, start, stop: np.arange(start, stop) / 10,
        }

    def forward(self, parameters, inputs):
        value = np.tanh(inputs @ parameters["value"])
        gate = 1 / (1 + np.exp(-inputs @ parameters["gate"] - parameters["bias"]))
        return value * gate, (inputs, value, gate)

    def backward(self, parameters, kept, gradient, into, is_first):
        inputs, value, gate = kept
        by_value, by_gate = gradient * gate * (1 - value**2), gradient * value * gate * (1 - gate)
        into["value"][...] = inputs.T @ by_value
        into["gate"][...] = inputs.T @ by_gate
        into["bias"][...] = by_gate.sum(axis=0)
        return (
            None if is_first else by_value @ parameters["value"].T + by_gate @ parameters["gate"].T
        )

    def description(self):
        return {"units": self.units}


def network(loss="softmax", *, units=4, input_shape=(6,), last=None):
    layers = [Scale(), Flatten(), Gated(units), dbdask.Dense(5, "tanh"), Scale(), dbdask.Dense(3)]
    return dbdask.Network(
        input_shape=input_shape, layers=[*layers, *([last] if last else [])], loss=loss
    )


def drawn(model, seed=0, examples=7):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, *model.input_shape))
    outputs = int(np.prod(model.output_shape))
    targets = {
        "softmax": rng.integers(0, outputs, examples),
        "logistic": rng.integers(0, 2, (examples, outputs)).astype(float),
        "squared": rng.normal(size=(examples, outputs)),
    }[model.loss]
    return rng.normal(scale=0.7, size=model.parameter_count), inputs, targets


def test_the_layout_has_any_number_of_parameters_a_layer():
    shapes = {p.name: p.shape for p in network(input_shape=(2, 3)).layout.parameters}
    assert list(shapes) == [
        "scale_0_factor",
        "gated_2_value",
        "gated_2_gate",
        "gated_2_bias",
        "dense_3_weights",
        "dense_3_bias",
        "scale_4_factor",
        "dense_5_weights",
        "dense_5_bias",
    ]
    assert shapes["scale_0_factor"] == (2, 3) and shapes["gated_2_gate"] == (6, 4)
    assert network().layout.parameters[2].dims == ("gated_2_input", "gated_2_unit")


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
@pytest.mark.parametrize("last", [None, Scale(), Flatten()])
@pytest.mark.parametrize("input_shape", [(6,), (2, 3)])
def test_gradients_equal_finite_differences(loss, last, input_shape):
    model = network(loss, input_shape=input_shape, last=last)
    parameters, inputs, targets = drawn(model)
    weights = np.random.default_rng(1).random(len(inputs))
    loss_then, gradient = evaluated(model, parameters, inputs, targets, weights)
    expected = by_differences(
        lambda point: evaluated(model, point, inputs, targets, weights)[0], parameters
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    assert model.loss_only(parameters, inputs, targets, weights=weights) == loss_then


def test_outputs_that_are_the_inputs_are_not_overwritten():
    class Same(Flatten):
        def output_shape(self, input_shape):
            return input_shape

        def forward(self, parameters, inputs):
            return inputs, (inputs,)

    model = dbdask.Network(input_shape=3, layers=[Scale(), Same()], loss="squared")
    parameters, inputs, targets = drawn(model)
    kept = inputs.copy()
    first, gradient = evaluated(model, parameters, inputs, targets)
    expected = by_differences(lambda p: evaluated(model, p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    alone = dbdask.Network(input_shape=3, layers=[Same(), Scale(), Same()], loss="logistic")
    alone.predict(parameters, inputs)
    assert np.array_equal(inputs, kept) and np.isfinite(first)


def test_any_cut_of_the_initial_vector_has_the_same_numbers():
    model = dbdask.Network(input_shape=300, layers=[Gated(400), dbdask.Dense(3)], loss="softmax")
    whole = model.initial_parameters(3, 0, model.parameter_count)
    assert model.parameter_count > 3 * BLOCK
    edges = [0, 1, 119_999, 120_000, 185_000, 239_990, 240_005, model.parameter_count]
    pieces = [model.initial_parameters(3, start, stop) for start, stop in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    views = model.layout.views(whole)
    assert np.abs(views["gated_0_value"]).max() <= 0.5
    assert views["gated_0_gate"].std() == pytest.approx(0.5, rel=0.02)
    np.testing.assert_allclose(views["gated_0_bias"], np.arange(400) / 10, rtol=1e-6)
    assert not np.array_equal(views["gated_0_value"], views["gated_0_gate"])


def test_it_trains_is_saved_and_comes_back_with_its_model(threads_client, store, tmp_path):  # noqa: F811
    examples = labelled(store)
    dbdask.check_model(network(), examples)
    result = dbdask.downpour(
        network(),
        examples,
        client=threads_client,
        optimizer=dbdask.adam(0.01),
        epochs=4,
        batch_size=20,
        progress=False,
    )
    assert result.evaluate(examples)["accuracy"] > 0.8
    path = tmp_path / "model.zarr"
    result.save(path)
    with pytest.raises(
        dbdask.ResultError, match=r"layers of yours \(Flatten, Gated, Scale\).*as model="
    ):
        dbdask.load(path)
    with pytest.raises(dbdask.ResultError, match="another layout"):
        dbdask.load(path, model=network(units=5))
    again = dbdask.load(path, model=network())
    assert again.evaluate(examples) == result.evaluate(examples)


def test_a_checkpoint_knows_an_own_layer_by_its_description(threads_client, store, tmp_path):  # noqa: F811
    def run(units, **options):
        return dbdask.downpour(
            network(units=units),
            labelled(store),
            client=threads_client,
            checkpoint=str(tmp_path / "run.zarr"),
            batch_size=20,
            progress=False,
            **options,
        )

    run(4)
    assert run(4, resume=True, epochs=2).status.ok
    with pytest.raises(dbdask.CheckpointError, match="the model is another.*'layers'"):
        run(5, resume=True)


def test_a_layer_that_fills_no_gradient_is_named(threads_client, store):  # noqa: F811
    def backward(self, parameters, kept, gradient, into, is_first):
        return gradient * parameters["factor"]

    layers = [changed(backward=backward), dbdask.Dense(3)]
    model = dbdask.Network(input_shape=6, layers=layers, loss="softmax")
    message = "did not overwrite the gradient of 'odd_0_factor'"
    with pytest.raises(dbdask.ModelError, match=message):
        dbdask.check_model(model, labelled(store))
    with pytest.raises(dbdask.ModelError, match=message):
        dbdask.sandblaster(model, labelled(store), client=threads_client, progress=False)


# What is no layer


def changed(**methods):
    return type("Odd", (Scale,), methods)()


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (Scale, TypeError, "layers must hold layers such as dbdask.Dense, got <class .*Scale"),
        (3, TypeError, "got 3: an object with output_shape, parameters, initial, forward and"),
        (object(), TypeError, "an object with output_shape, parameters, initial"),
        (
            changed(initial=lambda self, shape: {"other": dbdask.Constant()}),
            ValueError,
            r"initial must name the parameters of the layer, \['factor'\], got \['other'\]",
        ),
        (
            changed(parameters=lambda self, shape: [("a/b", shape)]),
            ValueError,
            "a parameter's name must be non-empty without '/'",
        ),
        (Gated(3), ValueError, r"one dimension, got \(2, 3\)"),
    ],
)
def test_what_is_no_layer_is_refused(layer, error, message):
    with pytest.raises(error, match=message):
        dbdask.Network(input_shape=(2, 3), layers=[layer, dbdask.Dense(2)], loss="squared")


def test_an_error_of_a_layer_says_which_it_is():
    layers = [dbdask.Dense(4), changed(output_shape=lambda self, shape: int("x"))]
    with pytest.raises(ValueError) as caught:
        dbdask.Network(input_shape=6, layers=layers, loss="squared")
    assert caught.value.__notes__ == ["in odd_1, whose input_shape is (4,)"]


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        (
            {"forward": lambda self, p, x: (x[:, :2], (x,))},
            dbdask.ModelError,
            r"odd_0.forward must return its outputs in shape \(7, 6\), got shape \(7, 2\)",
        ),
        (
            {"backward": lambda self, p, kept, gradient, into, is_first: None},
            dbdask.ModelError,
            r"odd_1.backward must return the gradient at its inputs in shape \(7, 6\), got None",
        ),
        (
            {"backward": lambda self, p, kept, g, into, is_first: into.update(factor=g)},
            AttributeError,
            "'mappingproxy' object has no attribute 'update'",
        ),
        (
            {"initial": lambda self, shape: {"factor": lambda stream, a, b: np.ones(shape)}},
            dbdask.ModelError,
            r"odd_0: initial of 'factor' must return shape \(3,\), got \(6,\)",
        ),
    ],
)
def test_what_a_layer_returns_is_looked_at(methods, error, message):
    odd = changed(**methods)
    model = dbdask.Network(input_shape=6, layers=[odd, odd, dbdask.Dense(3)], loss="softmax")
    with pytest.raises(error, match=message):
        model.initial_parameters(0, 0, 3)
        evaluated(model, *drawn(model))
