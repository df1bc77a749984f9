"""`dbdask.torch.dataset`: minibatches for a `DataLoader`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modules import FEATURES, ROWS, data, examples, plain  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import dbdask  # noqa: E402
from dbdask.torch import TorchModel, dataset  # noqa: E402


def loader(found, **options):
    return DataLoader(found, batch_size=None, **options)


def inputs_of(batches):
    return np.concatenate([batch[0].numpy() for batch in batches])


def as_set(inputs):
    return sorted(map(tuple, inputs.tolist()))


def test_each_pass_is_an_epoch_in_the_order_of_training():
    given = examples()
    found = loader(dataset(given, 32, seed=3))
    for epoch in range(3):
        batches = list(found)
        wanted = list(given.minibatches(32, seed=3, epoch=epoch))
        assert len(batches) == len(wanted)
        for (inputs, targets), arrays in zip(batches, wanted, strict=True):
            assert np.array_equal(inputs, arrays.inputs) and targets.dtype == torch.int64
            assert np.array_equal(targets, arrays.targets)


def test_an_epoch_can_be_chosen():
    found = dataset(examples(), 32)
    first, second = inputs_of(found), inputs_of(found)
    found.set_epoch(0)
    assert np.array_equal(inputs_of(found), first)
    assert np.array_equal(inputs_of(found), second)
    assert not np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_share_an_epoch_without_overlap(tmp_path, persistent):
    data().to_zarr(tmp_path / "store.zarr", consolidated=False)
    given = dbdask.Examples(str(tmp_path / "store.zarr"), inputs="x", targets="label", along="t")
    found = loader(
        dataset(given, 4, seed=1),
        num_workers=2,
        multiprocessing_context="forkserver",
        persistent_workers=persistent,
    )
    passes = [inputs_of(found) for _ in range(2)]
    assert not np.array_equal(*passes)
    for epoch, inputs in enumerate(passes):
        minibatches = given.minibatches(4, seed=1, epoch=epoch)
        alone = np.concatenate([arrays.inputs for arrays in minibatches])
        assert as_set(inputs) == as_set(alone) and len(inputs) == ROWS


def test_more_workers_than_portions_leave_some_idle():
    given = examples().isel(t=slice(70))
    portions = [inputs for part in range(5) for inputs in dataset(given, 32)._part(0, (part, 5))]
    assert sum(len(arrays.inputs) for arrays in portions) == 70


def test_weights_come_along_where_there_are_any():
    inputs, targets, weights = next(iter(dataset(examples("y", weights="w"), 16)))
    assert inputs.shape == (16, FEATURES) and targets.dtype == torch.float32
    assert weights.shape == (16,) and weights.dtype == torch.float32
    gaps = dbdask.Examples(data(), inputs="x", targets="label", along="t", missing="mask")
    assert torch.equal(next(iter(dataset(gaps, 16)))[2], torch.ones(16))
    alone = next(iter(dataset(dbdask.Examples(data(), inputs="x", along="t"), 16)))
    assert isinstance(alone, torch.Tensor) and alone.shape == (16, FEATURES)


def test_a_model_decides_what_targets_are():
    model = TorchModel(plain(), "squared")
    assert next(iter(dataset(examples("y"), 8, model=model)))[1].dtype == torch.float32


def test_wrong_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        dataset(examples(), 0)
    with pytest.raises(TypeError, match=r"examples must be dbdask.Examples, got Dataset"):
        dataset(data())
