"""The `dbdask.Model` contract, line by line, for models of every origin.

`dbdask.check_model` is not used here: these tests say by themselves what it must find.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import xarray as xr
from driven import drive
from test_check_model import FEATURES, OUTPUTS, Buffered, Dropout, Linear, Softmax, examples

import dbdask
from dbdask.errors import ModelError
from dbdask.models.cut import even_cut
from dbdask.models.cut_table import cut_table, initial_of_cut
from dbdask.models.layout import as_layout
from dbdask.models.part import Part

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)  # two wait for each other where other tests want the cores


PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def of_the_page():
    """Return the model of the page on one's own models, whose class is run from the page."""
    (source,) = re.findall(
        r"^class Robust:\n.*?(?=^\S)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    names = {"__name__": "__main__", "np": np}  # as in a script, it travels by value
    exec(source, names)
    return names["Robust"]()


def examples_of_the_page():
    """Return examples as the page's model takes them: six inputs, and one value to predict."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=40)
    data = xr.Dataset({"x": (("t", "f"), x.astype("f4")), "y": ("t", y.astype("f4"))})
    return dbdask.Examples(data, inputs="x", targets="y", along="t")


def network(loss):
    return dbdask.Network(
        input_shape=FEATURES, layers=[dbdask.Dense(4, "tanh"), dbdask.Dense(OUTPUTS)], loss=loss
    )


class InParts:
    """A network in parts as one model over the cut vector; one thread drives all parts."""

    def __init__(self, whole, parts):
        self.whole, self.cut = whole, even_cut(whole, parts)
        self.table = cut_table(whole, self.cut)
        self.parts = [Part(whole, self.cut, index) for index in range(parts)]
        self.loss, self.input_shape = whole.loss, whole.input_shape
        self.output_shape = whole.output_shape
        shapes = {p.name: p.shape for p in whole.layout.parameters}
        self.layout = [
            (f"{piece.name} {piece.first}", (piece.last - piece.first, *shapes[piece.name][1:]))
            for piece in self.table.pieces
        ]

    def initial_parameters(self, seed, start, stop):
        return initial_of_cut(self.whole, self.table, seed, start, stop)

    def driven(self, call, parameters):
        """Return what a method of every part returns, given its range of the vector."""
        return drive([call(p, parameters[slice(*p.range)], slice(*p.range)) for p in self.parts])[0]

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        options = {"weights": weights, "seed": seed}
        return sum(
            self.driven(
                lambda part, own, at: part.loss_and_gradient(
                    own, inputs, targets, gradient=gradient[at], **options
                ),
                parameters,
            )
        )

    def loss_only(self, parameters, inputs, targets, *, weights=None, seed=0):
        return sum(
            self.driven(
                lambda part, own, _: part.loss_only(own, inputs, targets, weights=weights),
                parameters,
            )
        )

    def predict(self, parameters, inputs):
        pieces = self.driven(lambda part, own, _: part.predict(own, inputs), parameters)
        return np.concatenate(pieces, axis=1)


def in_parts(loss, parts=2):
    return InParts(network(loss), parts)


def of_torch(loss, *layers, device="cpu"):
    from dbdask.torch import TorchModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = [make() for make in layers]
        module = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 4), *inner, torch.nn.Tanh(), torch.nn.Linear(4, OUTPUTS)
        )
    return TorchModel(module, loss, device=device)


def own_loss():
    return torch.nn.MSELoss(reduction="none")


def batch_norm():
    return torch.nn.BatchNorm1d(4)


def dropout():
    return torch.nn.Dropout(0.5)


needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
needs_cuda = pytest.mark.skipif(
    torch is None or not torch.cuda.is_available(), reason="there is no CUDA device"
)
MODELS = {
    "network": (lambda: network("softmax"), "label"),
    "network, logistic": (lambda: network("logistic"), "both"),
    "network, squared": (lambda: network("squared"), "y"),
    "in parts": (lambda: in_parts("softmax"), "label"),
    "in parts, logistic": (lambda: in_parts("logistic", 3), "both"),
    "in parts, squared": (lambda: in_parts("squared"), "y"),
    "of the page": (of_the_page, None),
    "by hand": (Linear, "y"),
    "by hand, labels": (Softmax, "label"),
    "by hand, dropout": (Dropout, "y"),
    "by hand, buffers": (Buffered, "y"),
    "torch": (lambda: of_torch("softmax"), "label"),
    "torch, logistic": (lambda: of_torch("logistic"), "both"),
    "torch, squared": (lambda: of_torch("squared"), "y"),
    "torch, own loss": (lambda: of_torch(own_loss()), "y"),
    "torch, batch norm": (lambda: of_torch("squared", batch_norm), "y"),
    "torch, dropout": (lambda: of_torch("squared", dropout), "y"),
    "cuda": (lambda: of_torch("softmax", device="cuda"), "label"),
    "cuda, batch norm": (lambda: of_torch("squared", batch_norm, device="cuda"), "y"),
    "cuda, dropout": (lambda: of_torch("squared", dropout, device="cuda"), "y"),
}
MARKS = {"torch": [needs_torch], "cuda": [needs_cuda]}
MIXES = {name for name in MODELS if "batch norm" in name}
RANDOM = {name for name in MODELS if "dropout" in name}


@pytest.fixture(
    params=[pytest.param(name, marks=MARKS.get(name.partition(",")[0], ())) for name in MODELS]
)
def case(request):
    model = MODELS[request.param][0]()
    return request.param, model, examples_for(request.param).batch(12, model=model)


def examples_for(name):
    targets = MODELS[name][1]
    return examples_of_the_page() if targets is None else examples(targets)


def outputs_of(model):
    return getattr(model, "output_shape", (OUTPUTS,))[0]


def start_of(model, seed=0):
    return np.array(model.initial_parameters(seed, 0, as_layout(model.layout).size))


def point_of(model):
    layout, rng = as_layout(model.layout), np.random.default_rng(0)
    point = start_of(model)
    for start, stop in layout.trained:
        point[start:stop] += rng.normal(scale=0.1, size=stop - start).astype(np.float32)
    return point


def call(model, point, arrays, weights=None, seed=0):
    gradient = np.full(point.size, np.nan, np.float32)
    loss = model.loss_and_gradient(
        point, arrays.inputs, arrays.targets, weights=weights, seed=seed, gradient=gradient
    )
    layout = as_layout(model.layout)
    trained = np.concatenate([gradient[start:stop] for start, stop in layout.trained])
    return float(loss), trained


def test_it_is_a_model(case):
    _, model, _ = case
    assert isinstance(model, dbdask.Model)


def test_initial_parameters_do_not_depend_on_the_cut(case):
    _, model, _ = case
    whole = start_of(model, seed=3)
    edges = sorted({0, 1, whole.size // 3, whole.size - 1, whole.size})
    parts = [model.initial_parameters(3, start, stop) for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole) and np.isfinite(whole).all()


def test_losses_and_gradients_are_sums_over_the_examples(case):
    name, model, arrays = case
    if name in RANDOM | MIXES:
        pytest.skip("the loss of an example depends on more than the example")
    point = point_of(model)
    whole = call(model, point, arrays)
    parts = [
        call(model, point, type(arrays)(arrays.inputs[rows], arrays.targets[rows], None))
        for rows in (slice(5), slice(5, None))
    ]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0], rel=1e-4)
    total = np.sum([gradient for _, gradient in parts], axis=0)
    np.testing.assert_allclose(total, whole[1], rtol=1e-3, atol=1e-4)


def test_weights_multiply_losses_and_gradients(case):
    _, model, arrays = case
    point, ones = point_of(model), np.ones(len(arrays.inputs), np.float32)
    plain, same, twice = (call(model, point, arrays, weights) for weights in (None, ones, 2 * ones))
    assert same[0] == pytest.approx(plain[0], rel=1e-5)
    assert twice[0] == pytest.approx(2 * plain[0], rel=1e-5)
    np.testing.assert_allclose(twice[1], 2 * plain[1], rtol=1e-3, atol=1e-4)


def test_the_gradient_is_that_of_the_loss(case):
    _, model, arrays = case
    point, rng = point_of(model), np.random.default_rng(1)
    _, gradient = call(model, point, arrays)
    places = np.concatenate([np.arange(*ends) for ends in as_layout(model.layout).trained])
    for _ in range(3):
        direction = rng.normal(size=places.size)
        direction /= np.linalg.norm(direction)
        ends = []
        for sign in (1, -1):
            moved = point.copy()
            moved[places] += (sign * 0.01 * direction).astype(np.float32)
            ends.append(call(model, moved, arrays)[0])
        slope = (ends[0] - ends[1]) / 0.02
        assert slope == pytest.approx(float(gradient @ direction), rel=0.05, abs=0.02)


def test_the_same_seed_gives_the_same_to_the_bit_and_another_what_is_random(case):
    name, model, arrays = case
    point = point_of(model)
    first, again, other = (call(model, point, arrays, seed=seed) for seed in (1, 1, 2))
    assert first[0] == again[0] and np.array_equal(first[1], again[1])
    assert (first[0] != other[0]) == (name in RANDOM)


def test_nothing_is_written_but_the_gradient_and_nothing_is_kept(case):
    _, model, arrays = case
    point, weights = point_of(model), np.ones(len(arrays.inputs), np.float32)
    given = [point, arrays.inputs, arrays.targets, weights]
    before = [array.copy() for array in given]
    first = call(model, point, arrays, weights)
    outputs = model.predict(point, arrays.inputs)
    held = np.array(outputs)
    assert all(np.array_equal(a, b) for a, b in zip(given, before, strict=True))
    for array in given:
        array[...] = 0
    copy = type(arrays)(before[1], before[2], None)
    again = call(model, before[0], copy, before[3])
    assert again[0] == first[0] and np.array_equal(again[1], first[1])
    assert np.array_equal(outputs, held)


def test_predictions_depend_on_the_example_alone_and_mean_what_the_loss_says(case):
    _, model, arrays = case
    point = point_of(model)
    whole = np.asarray(model.predict(point, arrays.inputs))
    assert whole.shape == (len(arrays.inputs), outputs_of(model))
    one = np.asarray(model.predict(point, arrays.inputs[3:4]))
    np.testing.assert_allclose(one[0], whole[3], rtol=1e-4, atol=1e-5)
    loss = getattr(model, "loss", None)
    if loss in ("softmax", "logistic"):
        assert (whole >= 0).all() and (whole <= 1).all()
    if loss == "softmax":
        np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)


def test_threads_do_not_disturb_each_other(case):
    _, model, arrays = case
    points = [point_of(model) + np.float32(0.01 * n) for n in range(3)]
    alone = [call(model, point, arrays, seed=n) for n, point in enumerate(points)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            together = pool.map(lambda n: call(model, points[n], arrays, seed=n), range(3))
            for one, other in zip(together, alone, strict=True):
                assert one[0] == other[0] and np.array_equal(one[1], other[1])


def test_a_copy_that_travelled_is_the_same(case):
    _, model, arrays = case
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    assert as_layout(copy.layout) == as_layout(model.layout)
    assert np.array_equal(start_of(copy), start_of(model))
    one, other = (call(each, point_of(model), arrays) for each in (copy, model))
    assert one[0] == other[0] and np.array_equal(one[1], other[1])


def test_check_model_agrees(case):
    name, model, _ = case
    assert dbdask.check_model(model, examples_for(name)).outputs == outputs_of(model)


class Counting(Buffered):
    """Adds one to its buffer in every minibatch."""

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        self.changed = {"count": parameters[15:17] + 1}
        return super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )

    def updated_buffers(self):
        return self.changed


class Wrong(Counting):
    def __init__(self, returned):
        self.returned = returned

    def updated_buffers(self):
        return self.returned


WRONG = [
    (None, "must return a dictionary of the buffers that have changed, got None"),
    ({"slopes": np.ones((3, 5))}, "returned 'slopes', and the buffers of model.layout are 'count'"),
    ({"count": np.ones(3)}, r"'count' as numbers of shape \(2,\), got float64 of shape \(3,\)"),
    ({"count": np.array([1, np.nan])}, "returned 'count' with NaN or infinity"),
]


def test_buffers_that_change_are_checked():
    assert dbdask.check_model(Counting(), examples()).parameters == 20
    for returned, message in WRONG:
        with pytest.raises(ModelError, match=message):
            dbdask.check_model(Wrong(returned), examples())


def test_buffers_that_remember_are_named():
    class Remembering(Counting):
        calls = 0

        def updated_buffers(self):
            self.calls += 1
            return {"count": np.full(2, 10.0 * self.calls)}

    with pytest.raises(ModelError, match="other buffers after the same minibatch"):
        dbdask.check_model(Remembering(), examples())
