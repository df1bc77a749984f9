"""Random networks of all kinds of layers, their examples, and random cuts of them."""

import numpy as np

import dbdask
from dbdask.models.cut import Cut, check_cut, even_cut
from dbdask.models.cut_choice import Speed, best_cut
from dbdask.models.layers import ACTIVATIONS

KINDS = ("dense", "locally connected", "pool", "contrast")


def drawn_layer(rng, kind, shape):
    """A layer of a kind that fits an image of a shape."""
    rows, columns, _ = shape
    size = (int(rng.integers(1, min(rows, 5) + 1)), int(rng.integers(1, min(columns, 4) + 1)))
    stride = tuple(int(length) for length in rng.integers(1, 4, 2))
    if kind == "locally connected":
        activation = str(rng.choice(ACTIVATIONS))
        maps = int(rng.integers(1, 4))
        return dbdask.LocallyConnected(maps, size, stride=stride, activation=activation)
    if kind == "pool":
        return dbdask.L2Pool(size, stride=stride if rng.random() < 0.6 else None)
    odd = tuple(length - 1 + length % 2 for length in size)
    if odd == (1, 1) and shape[2] == 1:
        return dbdask.L2Pool(1)
    return dbdask.LocalContrastNorm(odd)


def drawn_network(rng):
    """A network with at least one layer that has parameters."""
    loss = str(rng.choice(["softmax", "logistic", "squared"]))
    shape = tuple(int(length) for length in (*rng.integers(4, 12, 2), rng.integers(1, 4)))
    if rng.random() < 0.15:
        shape = (int(rng.integers(1, 9)),)
    layers, input_shape = [], shape
    for _ in range(rng.integers(1, 7)):
        is_image = len(shape) == 3 and rng.random() < 0.9
        kind = str(rng.choice(KINDS[1:])) if is_image else "dense"
        if kind == "dense":
            layer = dbdask.Dense(int(rng.integers(1, 9)), str(rng.choice(ACTIVATIONS)))
        else:
            layer = drawn_layer(rng, kind, shape)
        shape = layer.output_shape(shape)
        layers.append(layer)
    has_parameters = any(hasattr(layer, "activation") for layer in layers)
    is_linear = getattr(layers[-1], "activation", "linear") == "linear"
    if not has_parameters or not (is_linear or loss == "squared") or rng.random() < 0.5:
        layers.append(dbdask.Dense(int(rng.integers(1, 9))))
    return dbdask.Network(input_shape=input_shape, layers=layers, loss=loss)


def drawn_examples(rng, network, examples):
    """Parameters, inputs, targets, and weights in one of the three forms."""
    outputs = int(np.prod(network.output_shape))
    parameters = rng.normal(scale=0.5, size=network.parameter_count)
    inputs = rng.normal(size=(examples, *network.input_shape))
    labels, values = rng.integers(0, outputs, examples), rng.random((examples, outputs))
    use_labels = network.loss == "softmax" or (
        network.loss == "logistic" and outputs > 1 and rng.random() < 0.5
    )
    form = rng.integers(3)
    weights = [None, rng.random(examples), rng.random((examples, outputs))][form]
    if network.loss == "softmax" and form == 2:
        weights = rng.random((examples, 1))
    if form == 2:
        weights[rng.random(weights.shape) < 0.3] = 0
    return parameters, inputs, labels if use_labels else values, weights


def drawn_cut(rng, network, parts):
    """An even cut, the best at some speed, or any; None if a part would have no parameters."""
    kind = rng.integers(4)
    try:
        if kind == 0:
            return even_cut(network, parts)
        if kind == 1:
            return best_cut(network, parts, 3, Speed(message=float(rng.choice([1e-9, 1e-4, 1.0]))))
        edges = []
        for stage in network.stages:
            rows = stage.output_shape[0]
            inner = np.sort(rng.integers(0, rows + 1, parts - 1))
            edges.append((0, *(int(edge) for edge in inner), rows))
        bare = [layer for layer, stage in enumerate(network.stages[:-1]) if not stage.pieces]
        joined = tuple(layer for layer in bare if rng.random() < 0.6)
        cut = Cut(tuple(edges), joined)
        check_cut(network, cut)
        return cut
    except ValueError as error:
        assert "has no parameters" in str(error)
        return None
