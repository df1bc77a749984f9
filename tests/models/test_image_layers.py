"""Layers of images: against plain loops, finite differences and PyTorch, and in use."""

import json
import pickle
import re
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from plain_layers import l2_pool, local_contrast_norm, locally_connected
from test_network import by_differences, drawn, evaluated

import dbdask
from dbdask.models.layers import ACTIVATIONS
from dbdask.models.network import flops_of

SHAPE = (9, 8, 2)


def images(seed, shape=SHAPE, examples=3):
    return np.random.default_rng(seed).normal(size=(examples, *shape))


def parameters_of(layer, shape, seed=0):
    rng = np.random.default_rng(seed)
    return {p.name: rng.normal(size=p.shape) for p in layer.parameters(shape)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("patch", "stride"), [(1, 1), (3, 1), ((2, 5), (3, 1)), ((9, 8), 1), (3, 4), (5, (2, 3))]
)
def test_locally_connected_equals_a_loop(patch, stride, activation):
    layer = dbdask.LocallyConnected(4, patch, stride=stride, activation=activation)
    parameters, inputs = parameters_of(layer, SHAPE), images(1)
    kept = inputs.copy()
    outputs, _ = layer.forward(parameters, inputs)
    expected = locally_connected(inputs, *parameters.values(), layer.stride, activation)
    assert outputs.shape[1:] == layer.output_shape(SHAPE)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    np.testing.assert_array_equal(inputs, kept)


@pytest.mark.parametrize("size", [1, 3, (2, 3), (9, 8)])
@pytest.mark.parametrize("stride", [None, 1, (3, 2), 5])
def test_l2_pool_equals_a_loop(size, stride):
    layer = dbdask.L2Pool(size, stride=stride)
    outputs, _ = layer.forward({}, images(2))
    assert outputs.shape[1:] == layer.output_shape(SHAPE)
    np.testing.assert_allclose(outputs, l2_pool(images(2), layer.size, layer.stride), atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, (7, 5), (1, 7)])
@pytest.mark.parametrize("scale", [1.0, 0.005])
def test_local_contrast_norm_equals_a_loop(size, scale):
    layer, inputs = dbdask.LocalContrastNorm(size), scale * images(3)
    outputs, _ = layer.forward({}, inputs)
    assert outputs.shape[1:] == layer.output_shape(SHAPE)
    np.testing.assert_allclose(outputs, local_contrast_norm(inputs, layer.size), atol=1e-12)


def test_local_contrast_norm_of_a_constant_image_is_zero():
    outputs, _ = dbdask.LocalContrastNorm(5).forward({}, np.full((2, 7, 6, 3), 40.0))
    np.testing.assert_allclose(outputs, 0, atol=1e-10)


LAYERS = [
    dbdask.LocallyConnected(2, 5, activation="tanh"),
    dbdask.LocallyConnected(2, (4, 3), stride=(2, 3), activation="sigmoid"),
    dbdask.LocallyConnected(2, 1, activation="relu"),
    dbdask.LocallyConnected(2, (9, 8)),
    dbdask.L2Pool(2),
    dbdask.L2Pool((3, 4), stride=(2, 1)),
    dbdask.L2Pool(2, stride=3),
    dbdask.LocalContrastNorm(3),
    dbdask.LocalContrastNorm((5, 7)),
]


def gradient_at(layer, parameters, inputs, upstream):
    """The gradient of `sum(outputs * upstream)` at the inputs, and those at the parameters."""
    into = {name: np.full_like(values, np.nan) for name, values in parameters.items()}
    _, kept = layer.forward(parameters, inputs)
    below = layer.backward(parameters, kept, upstream.copy(), into, False)
    return below, into


NORMS = [layer for layer in LAYERS if isinstance(layer, dbdask.LocalContrastNorm)]
FAINT = {"all below the floor": 0.003, "some below the floor": 0.01}
"""Scales of images at which the divisor is the constant floor, everywhere or in some places."""

SCALED = [
    *[pytest.param(layer, 1.0, id=str(layer)) for layer in LAYERS],
    *[pytest.param(n, scale, id=f"{n}, {name}") for n in NORMS for name, scale in FAINT.items()],
]


@pytest.mark.parametrize("layer", NORMS, ids=str)
@pytest.mark.parametrize(("name", "scale"), FAINT.items())
@pytest.mark.parametrize(("seed", "shape"), [(4, SHAPE), (9, (20, 17, 3))])
def test_faint_images_are_where_they_are_meant_to_be(layer, name, scale, seed, shape):
    """A division by the floor shows as values that grow in proportion to the image."""
    inputs = scale * images(seed, shape, examples=2)
    values, larger = (layer.forward({}, factor * inputs)[0] for factor in (1.0, 1.0 + 1e-3))
    below = np.isclose(larger, values * (1 + 1e-3), rtol=1e-9).all(axis=-1)
    assert below.all() if name == "all below the floor" else 0.1 < below.mean() < 0.9


@pytest.mark.parametrize(("layer", "scale"), SCALED)
def test_gradients_equal_finite_differences(layer, scale):
    parameters, inputs = parameters_of(layer, SHAPE), scale * images(4, examples=2)
    upstream = images(5, layer.output_shape(SHAPE), examples=2)

    def value(at, **changed):
        return (layer.forward({**parameters, **changed}, at)[0] * upstream).sum()

    below, into = gradient_at(layer, parameters, inputs, upstream)
    step = 1e-6 * scale
    slopes = by_differences(lambda at: value(at.reshape(inputs.shape)), inputs.ravel(), step)
    np.testing.assert_allclose(scale * below.ravel(), scale * slopes, rtol=1e-6, atol=1e-8)
    for name, given in parameters.items():
        expected = by_differences(
            lambda point, name=name, given=given: value(
                inputs, **{name: point.reshape(given.shape)}
            ),
            given.ravel(),
        )
        np.testing.assert_allclose(into[name].ravel(), expected, rtol=1e-6, atol=1e-8)


def test_gradients_are_right_over_several_blocks():
    """One example is a block of windows or more; the layer cuts its work by their size."""
    layer = dbdask.LocallyConnected(2, 6, stride=2)
    shape, examples = (10, 9, 40), 100
    parameters, inputs = parameters_of(layer, shape), images(6, shape, examples)
    upstream = images(7, layer.output_shape(shape), examples)
    below, into = gradient_at(layer, parameters, inputs, upstream)
    parts = [
        gradient_at(layer, parameters, inputs[s], upstream[s])
        for s in np.split(np.arange(examples), 50)
    ]
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), below, atol=1e-10)
    for name, given in into.items():
        np.testing.assert_allclose(sum(part[1][name] for part in parts), given, atol=1e-10)


def test_patches_are_never_copied_all_at_once():
    layer, shape, examples = dbdask.LocallyConnected(2, 8), (30, 30, 4), 64
    parameters, inputs = parameters_of(layer, shape), images(6, shape, examples)
    upstream = images(7, layer.output_shape(shape), examples)
    tracemalloc.start()
    gradient_at(layer, parameters, inputs, upstream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    lasting = inputs.nbytes * 2 + upstream.nbytes * 3 + parameters["weights"].nbytes
    all_patches = 23 * 23 * 8 * 8 * 4 * examples * 8
    assert peak < lasting + 2**22 < all_patches / 3


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_no_example_is_no_error(layer):
    parameters = parameters_of(layer, SHAPE)
    upstream = np.empty((0, *layer.output_shape(SHAPE)))
    below, into = gradient_at(layer, parameters, images(8, examples=0), upstream)
    assert below.shape == (0, *SHAPE)
    assert not any(values.any() for values in into.values())


def by_torch(torch, layer, parameters, inputs, upstream):
    """Outputs, the gradient at the inputs and at the parameters, by PyTorch's own functions."""
    given = {name: torch.tensor(values, requires_grad=True) for name, values in parameters.items()}
    x = torch.tensor(inputs, requires_grad=True)
    functional, nchw = torch.nn.functional, x.permute(0, 3, 1, 2)
    if isinstance(layer, dbdask.LocallyConnected):
        rows, columns, _ = layer.output_shape(inputs.shape[1:])
        patches = functional.unfold(nchw, layer.patch, stride=layer.stride)
        patches = patches.reshape(len(x), x.shape[3], *layer.patch, rows, columns)
        outputs = torch.einsum("bkpqrc,rcmpqk->brcm", patches, given["weights"]) + given["bias"]
        outputs = {"linear": lambda v: v, "relu": torch.relu}.get(
            layer.activation, getattr(torch, layer.activation, None)
        )(outputs)
    elif isinstance(layer, dbdask.L2Pool):
        area = layer.size[0] * layer.size[1]
        means = functional.avg_pool2d(nchw**2, layer.size, layer.stride)
        outputs = torch.sqrt(area * means + 1e-6).permute(0, 2, 3, 1)
    else:
        half = [length // 2 for length in layer.size]
        along = [torch.arange(-h, h + 1, dtype=x.dtype) / (2 * h + 1) for h in half]
        window = torch.exp(-8 * (along[0][:, None] ** 2 + along[1][None] ** 2))
        channels = x.shape[3]
        kernel = window[None, None].repeat(1, channels, 1, 1)
        total = functional.conv2d(torch.ones_like(nchw), kernel, padding=half)
        centred = nchw - functional.conv2d(nchw, kernel, padding=half) / total
        squares = functional.conv2d(centred**2, kernel, padding=half) / total
        outputs = (centred / torch.clamp(torch.sqrt(squares), min=0.01)).permute(0, 2, 3, 1)
    (outputs * torch.tensor(upstream)).sum().backward()
    slopes = {name: values.grad.numpy() for name, values in given.items()}
    return outputs.detach().numpy(), x.grad.numpy(), slopes


def test_the_gradient_at_a_constant_image_is_that_of_a_division_by_the_floor():
    """The deviation is 0 there, where its square root has no slope."""
    layer, inputs = dbdask.LocalContrastNorm(3), np.full((1, 5, 6, 2), 40.0)
    upstream = images(6, (5, 6, 2), examples=1)
    below, _ = gradient_at(layer, {}, inputs, upstream)
    linear, _ = gradient_at(layer, {}, 1e-3 * images(7, (5, 6, 2), examples=1), upstream)
    np.testing.assert_allclose(below, linear, atol=1e-9)


@pytest.mark.parametrize(("layer", "scale"), SCALED)
def test_layers_equal_pytorch(layer, scale):
    torch = pytest.importorskip("torch")
    shape = (20, 17, 3)
    if layer.output_shape(SHAPE)[:2] == (1, 1):
        shape = SHAPE
    parameters, inputs = parameters_of(layer, shape), scale * images(9, shape, examples=5)
    upstream = images(10, layer.output_shape(shape), examples=5)
    outputs, _ = layer.forward(parameters, inputs)
    below, into = gradient_at(layer, parameters, inputs, upstream)
    theirs, their_below, their_into = by_torch(torch, layer, parameters, inputs, upstream)
    np.testing.assert_allclose(outputs, theirs, atol=1e-10)
    np.testing.assert_allclose(scale * below, scale * their_below, atol=1e-10)
    for name, slopes in their_into.items():
        np.testing.assert_allclose(into[name], slopes, atol=1e-10)


# In a network

SMALL = (12, 11, 2)


def paper_in_small(loss="logistic", activation="linear"):
    layers = [
        dbdask.LocallyConnected(3, 3, activation=activation),
        dbdask.L2Pool(2),
        dbdask.LocalContrastNorm(3),
        dbdask.LocallyConnected(4, 2, activation=activation),
        dbdask.L2Pool(2, stride=1),
        dbdask.LocalContrastNorm(1),
        dbdask.Dense(5),
    ]
    return dbdask.Network(input_shape=SMALL, layers=layers, loss=loss)


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
def test_gradients_of_a_network_equal_finite_differences(loss):
    network = paper_in_small(loss, "tanh")
    parameters, inputs, targets = drawn(network, seed=1, examples=4)
    weights = np.random.default_rng(2).random(4)
    _, gradient = evaluated(network, parameters, inputs, targets, weights)
    some = np.random.default_rng(3).choice(parameters.size, 60, replace=False)

    def loss_at(values):
        point = parameters.copy()
        point[some] = values
        return evaluated(network, point, inputs, targets, weights)[0]

    expected = by_differences(loss_at, parameters[some])
    np.testing.assert_allclose(gradient[some], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_of_images_may_be_the_last_one(layer):
    network = dbdask.Network(
        input_shape=SHAPE, layers=[dbdask.LocallyConnected(2, 1), layer], loss="squared"
    )
    rng = np.random.default_rng(4)
    parameters = rng.normal(size=network.parameter_count)
    targets = rng.normal(size=(3, *network.output_shape))
    loss, gradient = evaluated(network, parameters, images(11), targets)
    step = 1e-6 * gradient
    ahead = evaluated(network, parameters + step, images(11), targets)[0]
    behind = evaluated(network, parameters - step, images(11), targets)[0]
    assert np.isfinite(loss)
    assert (ahead - behind) / 2e-6 == pytest.approx(gradient @ gradient, rel=1e-6)


def test_a_network_of_images_is_small_described_and_cut_anywhere():
    network = paper_in_small()
    assert dbdask.Network.from_description(json.loads(json.dumps(network.description()))) == network
    assert pickle.loads(pickle.dumps(network)) == network and hash(network)
    assert len(pickle.dumps(network)) < 4000
    whole = network.initial_parameters(3, 0, network.parameter_count)
    pieces = [network.initial_parameters(3, a, a + 97) for a in range(0, whole.size - 97, 97)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[: 97 * len(pieces)])
    first, bias, *_ = network.layout.parameters
    assert first.name == "locallyconnected_0_weights" and first.shape == (10, 9, 3, 3, 3, 2)
    assert bias.dims == tuple(f"locallyconnected_0_{dim}" for dim in ("row", "column", "map"))


def test_one_number_is_a_pair_of_it():
    assert dbdask.LocallyConnected(8, 5) == dbdask.LocallyConnected(8, (5, 5), stride=(1, 1))
    assert dbdask.L2Pool(2) == dbdask.L2Pool((2, 2), stride=2)
    assert dbdask.LocalContrastNorm(3) == dbdask.LocalContrastNorm([3, 3])


def test_threads_are_given_for_large_products_only():
    network = paper_in_small()
    dense = 5 * (4 * 3 * 2) + 5
    assert network.output_shape == (5,) and network.stages[-1].input_shape == (3, 2, 4)
    assert flops_of(network, 10) == 60 * dense
    only_dense = dbdask.Network(input_shape=3, layers=[dbdask.Dense(4)], loss="softmax")
    assert flops_of(only_dense, 10) == 60 * 16


def test_a_network_of_the_paper_s_stages_is_described_without_its_parameters():
    layers = []
    for maps in (8, 16, 36):
        layers += [dbdask.LocallyConnected(maps, 10), dbdask.L2Pool(2), dbdask.LocalContrastNorm(3)]
    with pytest.raises(ValueError, match="size of L2Pool must be at most the image, 1 x 1"):
        dbdask.Network(input_shape=(30, 30, 3), layers=[*layers, dbdask.Dense(9)], loss="logistic")
    layers.append(dbdask.Dense(21_000))
    network = dbdask.Network(input_shape=(100, 100, 3), layers=layers, loss="logistic")
    by_layer = [
        91 * 91 * 8 * (100 * 3 + 1),
        36 * 36 * 16 * (100 * 8 + 1),
        9 * 9 * 36 * (100 * 16 + 1),
        21_000 * (4 * 4 * 36 + 1),
    ]
    assert network.parameter_count == sum(by_layer)


def pictures(shape, count, outputs=5):
    rng = np.random.default_rng(5)
    data = xr.Dataset(
        {
            "picture": (
                ("example", "row", "column", "channel"),
                rng.normal(size=(count, *shape)).astype(np.float32),
            ),
            "kind": ("example", np.arange(count) % outputs),
        }
    )
    return data.chunk(example=20)


def examples_of(data):
    return dbdask.Examples(data, inputs="picture", targets="kind", along="example")


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_a_network_of_images_passes_the_check(activation):
    report = dbdask.check_model(
        paper_in_small("softmax", activation), examples_of(pictures(SMALL, 60))
    )
    assert report.probes > 20 and not report.notes


def test_it_trains_is_saved_loaded_and_predicts(threads_client, tmp_path):
    examples = examples_of(pictures(SMALL, 100))
    options = {"client": threads_client, "progress": False}
    network = paper_in_small("softmax")
    result = dbdask.downpour(
        network, examples, optimizer=dbdask.adagrad(0.05), batch_size=20, epochs=4, **options
    )
    losses = result.history["loss"].values
    assert losses[-1] < losses[0]
    batch = dbdask.sandblaster(network, examples, parameters=result, iterations=3, **options)
    assert batch.history["loss"].values[-1] < losses[-1]
    batch.save(tmp_path / "model.zarr")
    loaded = dbdask.load(tmp_path / "model.zarr")
    xr.testing.assert_equal(loaded.parameters.load(), batch.parameters.load())
    assert loaded.evaluate(examples) == batch.evaluate(examples)
    labels = loaded.predict(pictures(SMALL, count=100)).values
    assert labels.shape == (100,) and set(labels) <= set(range(5))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dbdask.LocallyConnected(0, 3), ValueError, "maps must be at least 1, got 0"),
        (lambda: dbdask.LocallyConnected(2.0, 3), TypeError, "maps must be a whole number"),
        (lambda: dbdask.LocallyConnected(2, 0), ValueError, "patch must be at least 1, got 0"),
        (lambda: dbdask.LocallyConnected(2, 3, stride=0), ValueError, "stride must be at least 1"),
        (
            lambda: dbdask.LocallyConnected(2, 3, activation="swish"),
            ValueError,
            "activation must be one of",
        ),
        (lambda: dbdask.L2Pool("2"), TypeError, "size must be a whole number"),
        (lambda: dbdask.L2Pool(2, stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: dbdask.LocalContrastNorm(4), ValueError, "size must be odd.*got 4"),
        (
            lambda: dbdask.Network(
                input_shape=(28, 28), layers=[dbdask.LocallyConnected(2, 3)], loss="squared"
            ),
            ValueError,
            "channels), got input_shape (28, 28): an image of one channel has input_shape "
            "(28, 28, 1)",
        ),
        (
            lambda: dbdask.Network(
                input_shape=(28, 28, 1), layers=[dbdask.Dense(3), dbdask.L2Pool(2)], loss="squared"
            ),
            ValueError,
            "L2Pool needs images of (rows, columns, channels), got input_shape (3,)",
        ),
        (
            lambda: dbdask.LocallyConnected(2, 6).output_shape((5, 9, 1)),
            ValueError,
            "patch of LocallyConnected must be at most the image, 5 x 9, got 6 x 6",
        ),
        (
            lambda: dbdask.LocalContrastNorm(5).output_shape((5, 4, 1)),
            ValueError,
            "size of LocalContrastNorm must be at most the image, 5 x 4, got 5 x 5",
        ),
        (
            lambda: dbdask.LocalContrastNorm(1).output_shape((5, 4, 1)),
            ValueError,
            "at least 3 for an image of one channel, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message if "*" in message else re.escape(message)):
        make()
