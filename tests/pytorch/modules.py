"""Modules, data and devices that the tests of `dbdask.torch` share; workers import it."""

import numpy as np
import pytest
import xarray as xr

import dbdask

torch = pytest.importorskip("torch")
nn = torch.nn

torch.set_num_threads(1)  # two wait for each other where other tests want the cores

ROWS, FEATURES, CLASSES = 600, 6, 3

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ),
]


def data(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    scores = x @ rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return xr.Dataset(
        {
            "x": (("t", "f"), x),
            "y": (("t", "k"), scores),
            "both": (("t", "k"), (scores > 0).astype(np.float32)),
            "label": ("t", scores.argmax(axis=1)),
            "w": ("t", rng.uniform(0.5, 2, rows).astype(np.float32)),
        }
    ).chunk(t=50)


def examples(targets="label", **options):
    return dbdask.Examples(data(), inputs="x", targets=targets, along="t", **options)


def seeded(*layers):
    """Return a module whose layers are made by functions, from torch's seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers))


def plain():
    return seeded(lambda: nn.Linear(FEATURES, 8), nn.Tanh, lambda: nn.Linear(8, CLASSES))


def normed():
    return seeded(
        lambda: nn.Linear(FEATURES, 8),
        lambda: nn.BatchNorm1d(8),
        nn.ReLU,
        lambda: nn.Linear(8, CLASSES),
    )


def dropping():
    return seeded(
        lambda: nn.Linear(FEATURES, 32),
        lambda: nn.Dropout(0.5),
        nn.ReLU,
        lambda: nn.Linear(32, CLASSES),
    )


def convolving():
    return seeded(
        lambda: nn.Unflatten(1, (1, FEATURES)),
        lambda: nn.Conv1d(1, 4, 3, padding=1),
        lambda: nn.BatchNorm1d(4),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(4 * FEATURES, CLASSES),
    )


class Tied(nn.Module):
    """Uses one array twice, and has arrays of every kind."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(FEATURES, FEATURES, bias=False)
        self.again = nn.Linear(FEATURES, FEATURES, bias=False)
        self.again.weight = self.into.weight
        self.out = nn.Linear(FEATURES, CLASSES)
        self.fixed = nn.Parameter(torch.full((FEATURES,), 2.0), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("shift", torch.arange(FEATURES), persistent=False)

    def forward(self, inputs):
        if self.training:
            self.seen = self.seen + 1
        return self.out(self.again(torch.tanh(self.into(inputs * self.fixed + self.shift / 10))))


def tied():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied()


SEEN = []
"""What modules have noted, in this process."""


class Looking(nn.Module):
    """Notes what it sees in each forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, inputs):
        outputs = self.inner(inputs)
        weight = self.inner[0].weight.data_ptr()
        SEEN.append((weight, torch.get_num_threads(), outputs.dtype))
        return outputs


def functional_dropout():
    return FunctionalDropout()


class FunctionalDropout(nn.Module):
    """Drops out without a layer that would show it."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        return self.out(nn.functional.dropout(inputs, 0.5, self.training))


MODULES = {
    "plain": plain,
    "normed": normed,
    "dropping": dropping,
    "convolving": convolving,
    "tied": tied,
    "functional dropout": functional_dropout,
}


def assert_same(found, wanted, device):
    """Two vectors are equal: to the bit on the CPU; a GPU may add up in another order."""
    if device == "cpu":
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def call(model, parameters, arrays, *, seed=0, weights=None):
    """Return loss and gradient of some arrays; weights may replace theirs."""
    gradient = np.full_like(parameters, np.nan)
    loss = model.loss_and_gradient(
        parameters,
        arrays.inputs,
        arrays.targets,
        weights=arrays.weights if weights is None else weights,
        seed=seed,
        gradient=gradient,
    )
    return loss, gradient
