"""The models of the chaos programs: they count exactly, whole and in parts."""

import types

import numpy as np
import pytest
import xarray as xr
from test_part import in_parts, whole_of

import dbdask
from benchmarks import chaos, mixed_chaos
from benchmarks._chaos_models import CountingRows, missing_updates
from dbdask.models.partition import partition_of


def chaos_case(partitions):
    return chaos.model_of(partitions, 0.0), chaos.ROWS, chaos.BATCH, chaos.RATE


def mixed_case(folder):
    layers = CountingRows(2, mixed_chaos.ROWS, mixed_chaos.RATE)
    network = mixed_chaos.network(layers, inputs=3, folder=str(folder))
    return network, mixed_chaos.ROWS, mixed_chaos.BATCH, mixed_chaos.RATE


@pytest.fixture(params=["chaos", "chaos, in parts", "mixed"])
def case(request, tmp_path):
    (tmp_path / "over").touch()
    if request.param == "mixed":
        return mixed_case(tmp_path)
    return chaos_case(2 if "parts" in request.param else 1)


def drawn(model, numbers, rng):
    """Inputs that end with the numbers of the examples, and targets."""
    if isinstance(model, dbdask.Network) and model.loss == "squared":
        features = np.zeros((len(numbers), 2), np.float32)
        targets = rng.normal(size=(len(numbers), 2)).astype(np.float32)
    else:
        features = rng.normal(size=(len(numbers), chaos.FEATURES)).astype(np.float32)
        targets = rng.integers(0, chaos.CLASSES, len(numbers))
    return np.concatenate([features, numbers[:, None]], axis=1, dtype=np.float32), targets


def counts_in(model, parameters):
    """The two rows of counts."""
    views = model.layout.views(parameters)
    return np.concatenate([v.reshape(-1) for name, v in views.items() if is_count(name)])


def is_count(name):
    return name in ("first", "second") or name.endswith("_count")


def test_an_update_adds_one_to_the_count_of_each_of_its_examples(case):
    model, rows, batch, rate = case
    rng, rule = np.random.default_rng(0), dbdask.sgd(rate)
    parameters = model.initial_parameters(0, 0, model.layout.size)
    gradient = np.empty_like(parameters)
    expected = np.zeros(rows)
    for step in range(8):
        numbers = rng.choice(rows, batch, replace=False)
        inputs, targets = drawn(model, numbers, rng)
        model.loss_and_gradient(
            parameters, inputs, targets, weights=None, seed=0, gradient=gradient
        )
        rule.update(parameters, gradient / np.float32(batch), {}, step)
        expected += np.bincount(numbers, minlength=rows)
    assert expected.max() > 1 or rows > 8 * batch
    np.testing.assert_array_equal(counts_in(model, parameters), np.tile(expected, 2))


@pytest.mark.parametrize("name", ["chaos", "mixed"])
def test_without_parts_two_shards_have_one_row_of_counts_each(name, tmp_path):
    model, rows, *_ = chaos_case(1) if name == "chaos" else mixed_case(tmp_path)
    in_shard = np.zeros(model.layout.size, np.float32)
    in_shard[: model.layout.size // 2] = 1
    np.testing.assert_array_equal(counts_in(model, in_shard), np.repeat([1, 0], rows))


@pytest.mark.parametrize("name", ["chaos", "mixed"])
def test_each_of_two_parts_counts_in_one_row_and_together_they_are_the_whole(name, tmp_path):
    (tmp_path / "over").touch()
    network, rows, batch, _ = chaos_case(2) if name == "chaos" else mixed_case(tmp_path)
    partition = partition_of(network, 2, batch)
    in_part = np.zeros(network.layout.size)
    in_part[slice(*partition.ranges[0])] = 1
    np.testing.assert_array_equal(
        counts_in(network, partition.to_whole(in_part)), np.repeat([1, 0], rows)
    )
    rng = np.random.default_rng(1)
    parameters = rng.normal(size=network.layout.size).astype(np.float32)
    inputs, targets = drawn(network, rng.choice(rows, batch, replace=False), rng)
    loss, gradient = whole_of(network, parameters, inputs, targets, None)
    cut_loss, cut_gradient, carried = in_parts(
        network, partition.cut, parameters, inputs, targets, None
    )
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(cut_gradient, gradient, rtol=1e-4, atol=1e-4)
    assert carried, "the parts have exchanged nothing"


def test_models_raise_only_while_a_file_says_so(tmp_path):
    (tmp_path / "over").touch()
    moods = mixed_chaos.Moods(str(tmp_path), 1000.0)
    for _ in range(200):
        moods()
    (tmp_path / "raising").touch()
    with pytest.raises(RuntimeError, match="now and then"):
        for _ in range(1000):
            moods()


def trained(*counts):
    """What a run returns whose parameters are counts, and something else."""
    arrays = {f"row_{n}": (f"layer_{n}_example", np.array(c)) for n, c in enumerate(counts)}
    return types.SimpleNamespace(parameters=xr.Dataset(arrays | {"bias": ("unit", [0.5])}))


def test_missing_updates_are_added_over_the_rows_of_counts():
    assert missing_updates(trained([3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]), 3, 2) == 0
    assert missing_updates(trained([2.0, 2.0, 3.0, 3.0], [1.0, 2.0, 2.0, 3.0]), 3, 2) == 3


@pytest.mark.parametrize(
    ("counts", "message"), [([4.0, 3.0], "4 times in 3"), ([2.0, 3.0], "0.5 updates")]
)
def test_an_example_too_often_and_half_a_minibatch_are_errors(counts, message):
    with pytest.raises(AssertionError, match=message):
        missing_updates(trained(counts), 3, 2)
