"""`TorchModel` as a function of vectors: no cluster."""

import gc
import pickle
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cloudpickle
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modules import (  # noqa: E402
    CLASSES,
    DEVICES,
    FEATURES,
    MODULES,
    SEEN,
    Looking,
    call,
    dropping,
    examples,
    nn,
    normed,
    plain,
    tied,
)

import dbdask  # noqa: E402
from dbdask.errors import DataError, ModelError  # noqa: E402
from dbdask.torch import TorchModel  # noqa: E402
from dbdask.worker.blas_limit import blas_limit  # noqa: E402


def start_of(model):
    return model.initial_parameters(0, 0, model.parameter_count)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODULES)
def test_it_keeps_the_contract(name, device):
    report = dbdask.check_model(TorchModel(MODULES[name](), "softmax", device=device), examples())
    assert report.outputs == CLASSES and report.probes >= 4
    is_random = "dropout" in name or name == "dropping"
    assert any("seed" in note for note in report.notes) == is_random


LOSSES = [
    ("squared", "y"),
    ("logistic", "both"),
    ("logistic", "label"),
    (nn.MSELoss(reduction="none"), "y"),
    (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), reduction="none"), "label"),
    (lambda outputs, targets: (outputs - targets).abs().mean(dim=1), "y"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("loss", "targets"), LOSSES)
def test_every_loss_keeps_the_contract(loss, targets, device):
    model = TorchModel(plain(), loss, device=device)
    assert dbdask.check_model(model, examples(targets)).probes >= 4
    assert dbdask.check_model(model, examples(targets, weights="w")).probes >= 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("loss", "targets"),
    [("softmax", "label"), ("logistic", "label"), ("logistic", "both"), ("squared", "y")],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_gradients_and_predictions_are_those_of_a_network(loss, targets, weighted, device):
    network = dbdask.Network(
        input_shape=FEATURES, layers=[dbdask.Dense(8, "tanh"), dbdask.Dense(CLASSES)], loss=loss
    )
    model = TorchModel(plain(), loss, device=device)
    options = {"weights": "w"} if weighted else {}
    arrays = examples(targets, **options).batch(40, model=network)
    parameters = start_of(model)
    names = [(p.name, p.shape) for p in model.layout.parameters]
    assert names[0] == ("0.weight", (8, FEATURES))  # output unit first, as in a network
    value, gradient = call(model, parameters, arrays)
    wanted, slope = call(network, parameters, arrays)
    assert value == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4)
    given = parameters, arrays.inputs
    np.testing.assert_allclose(model.predict(*given), network.predict(*given), atol=1e-4)
    assert model.loss_only(*given, arrays.targets, weights=arrays.weights) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_missing_target_of_weight_zero_counts_for_nothing(device):
    arrays = examples("y").batch(6)
    for loss in ("squared", nn.MSELoss(reduction="none")):
        model = TorchModel(plain(), loss, device=device)
        weights = np.ones((6, CLASSES), np.float32)
        weights[2, 1] = weights[4] = 0
        clean = call(model, start_of(model), arrays, weights=weights)
        gaps = arrays._replace(targets=np.where(weights == 0, np.nan, arrays.targets))
        again = call(model, start_of(model), gaps, weights=weights)
        assert clean[0] == again[0] and np.array_equal(clean[1], again[1])
    summed = TorchModel(
        plain(), lambda outputs, targets: (outputs - targets).square().sum(dim=1), device=device
    )
    with pytest.raises(ModelError, match="weights differ within an example"):
        call(summed, start_of(summed), arrays, weights=weights)


def test_parameters_are_views_and_nothing_is_kept():
    model, arrays = TorchModel(Looking(), "softmax"), examples().batch(4)
    parameters = start_of(model)
    SEEN.clear()
    _, gradient = call(model, parameters, arrays)
    assert SEEN[0][0] == parameters.ctypes.data
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    held = weakref.ref(parameters), weakref.ref(gradient)
    del parameters, gradient
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_the_gradient_is_written_by_backward_into_the_vector(monkeypatch):
    model = TorchModel(plain(), "softmax")
    seen = []
    backward = torch.Tensor.backward

    def noted(tensor, *args, **kwargs):
        backward(tensor, *args, **kwargs)
        seen.append(model._bound()._parameters[0][1].grad.data_ptr())

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    arrays, parameters = examples().batch(4), start_of(model)
    gradient = np.empty_like(parameters)
    model.loss_and_gradient(
        parameters, arrays.inputs, arrays.targets, weights=None, seed=0, gradient=gradient
    )
    assert seen == [gradient.ctypes.data]


@pytest.mark.parametrize("device", DEVICES)
def test_arrays_that_cannot_be_written_are_taken(device):
    model, arrays = TorchModel(normed(), "softmax", device=device), examples().batch(4)
    parameters = start_of(model)
    wanted = model.predict(parameters, arrays.inputs)
    for array in (parameters, *arrays[:2]):
        array.setflags(write=False)
    assert np.array_equal(model.predict(parameters, arrays.inputs), wanted)
    assert np.isfinite(call(model, parameters, arrays)[0])


# Buffers


@pytest.mark.parametrize("device", DEVICES)
def test_buffers_come_back_by_name_and_parameters_are_not_written(device):
    module, arrays = normed(), examples().batch(40)
    model = TorchModel(module, "softmax", device=device)
    kinds = {p.name: p.kind for p in model.layout.parameters}
    assert [n for n, kind in kinds.items() if kind == "buffer"] == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    parameters = start_of(model)
    before = parameters.copy()
    call(model, parameters, arrays)
    assert np.array_equal(parameters, before)
    buffers = model.updated_buffers()
    module(torch.from_numpy(arrays.inputs))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        wanted = getattr(module[1], name).numpy()
        np.testing.assert_allclose(buffers[f"1.{name}"], wanted, rtol=1e-5, atol=1e-6)
    held = {name: values.copy() for name, values in buffers.items()}
    model.predict(parameters, arrays.inputs)
    call(model, parameters, arrays._replace(inputs=2 * arrays.inputs))
    assert all(np.array_equal(held[name], values) for name, values in buffers.items())


@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_uses_the_buffers_of_the_vector(device):
    model, arrays = TorchModel(normed(), "softmax", device=device), examples().batch(10)
    parameters = start_of(model)
    model.layout.views(parameters)["1.running_mean"][:] = 3
    module = normed().eval()
    module[1].running_mean.fill_(3)
    wanted = module(torch.from_numpy(arrays.inputs)).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(model.predict(parameters, arrays.inputs), wanted, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_tied_frozen_unused_and_replaced_tensors(device):
    model, arrays = TorchModel(tied(), "softmax", device=device), examples().batch(10)
    kinds = {p.name: p.kind for p in model.layout.parameters}
    assert kinds == {
        "unused": "trained",
        "into.weight": "trained",
        "out.weight": "trained",
        "out.bias": "trained",
        "fixed": "buffer",
        "seen": "buffer",
    }
    parameters = start_of(model)
    _, gradient = call(model, parameters, arrays)
    assert np.array_equal(model.layout.views(gradient)["unused"], [0, 0])
    assert model.updated_buffers() == {"seen": 1}  # the module binds its buffer anew
    call(model, parameters, arrays)
    assert model.updated_buffers() == {"seen": 1}  # and begins each call from the vector's
    names = set(model.state_dict(parameters))
    assert names == set(tied().state_dict()) and "again.weight" in names


@pytest.mark.parametrize("device", DEVICES)
def test_a_module_in_eval_mode_is_trained_and_a_frozen_part_stays_frozen(device):
    arrays = examples().batch(10)
    whole = TorchModel(normed().eval(), "softmax", device=device)
    call(whole, start_of(whole), arrays)
    assert whole.updated_buffers()["1.num_batches_tracked"] == 1
    module = normed()
    module[1].eval()
    part = TorchModel(module, "softmax", device=device)
    call(part, start_of(part), arrays)
    assert part.updated_buffers()["1.num_batches_tracked"] == 0


# Random numbers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [dropping, MODULES["functional dropout"]])
def test_the_seed_decides_on_dropout_to_the_bit(make, device):
    arrays = examples().batch(40)
    first, second = (TorchModel(make(), "softmax", device=device) for _ in range(2))
    parameters = start_of(first)
    before = torch.get_rng_state()
    results = [call(first, parameters, arrays, seed=seed) for seed in (7, 8, 7)]
    again = call(second, parameters, arrays, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert results[0][0] == results[2][0] == again[0] != results[1][0]
    assert np.array_equal(results[0][1], results[2][1]) and np.array_equal(results[0][1], again[1])


@pytest.mark.parametrize("device", DEVICES)
def test_threads_do_not_disturb_each_others_dropout(device):
    model, arrays = TorchModel(dropping(), "softmax", device=device), examples().batch(64)
    parameters = start_of(model)
    alone = [call(model, parameters, arrays, seed=seed) for seed in range(40)]
    barrier = threading.Barrier(4)

    def work(first):
        barrier.wait()
        return [call(model, parameters, arrays, seed=seed) for seed in range(first, 40, 4)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    for first, found in enumerate(together):
        for one, other in zip(found, alone[first::4], strict=True):
            assert one[0] == other[0] and np.array_equal(one[1], other[1])


# Threads, devices, precision


def test_torch_uses_the_threads_of_a_replica():
    model, arrays = TorchModel(Looking(), "softmax"), examples().batch(4)
    before = torch.get_num_threads()
    SEEN.clear()
    for threads in (1, 3):
        with blas_limit.at_most(threads):
            call(model, start_of(model), arrays)
    call(model, start_of(model), arrays)
    assert [threads for _, threads, _ in SEEN] == [1, 3, before]
    assert torch.get_num_threads() == before


def test_every_thread_has_a_module_of_its_own():
    model, arrays = TorchModel(plain(), "softmax"), examples().batch(4)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: model._bound(), range(8)))
    mine = model._bound()
    assert all(one is not mine for one in found)
    assert call(model, start_of(model), arrays)[0] > 0


def test_outside_a_worker_the_cpu_stands_in():
    arrays = examples().batch(4)
    for device in ("cuda:99", lambda address: "cuda:99"):
        model = TorchModel(plain(), "softmax", device=device)
        assert model.predict(start_of(model), arrays.inputs).shape == (4, CLASSES)


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(device):
    arrays = examples().batch(40)
    exact = TorchModel(Looking(), "softmax", device=device)
    mixed = TorchModel(Looking(), "softmax", device=device, precision="bfloat16")
    parameters = start_of(exact)
    SEEN.clear()
    loss, gradient = call(exact, parameters, arrays)
    rough, slope = call(mixed, parameters, arrays)
    assert [dtype for _, _, dtype in SEEN] == [torch.float32, torch.bfloat16]
    assert slope.dtype == np.float32 and rough == pytest.approx(loss, rel=0.02)
    assert np.linalg.norm(slope - gradient) < 0.05 * np.linalg.norm(gradient)
    assert not np.array_equal(slope, gradient)


# In and out


def test_a_state_dict_goes_in_and_out():
    model, other = TorchModel(normed(), "softmax"), normed()
    with torch.no_grad():
        other[0].weight.normal_()
        other[1].num_batches_tracked.fill_(5)
    vector = model.load_state_dict(other.state_dict())
    assert np.array_equal(vector, start_of(model))
    back = model.state_dict(vector)
    assert list(back) == list(other.state_dict())
    for name, tensor in other.state_dict().items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    normed().load_state_dict(back)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


@pytest.mark.parametrize("device", DEVICES)
def test_the_module_that_is_given_is_not_changed(device):
    module, arrays = normed(), examples().batch(10)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = TorchModel(module, "softmax", device=device)
    call(model, start_of(model), arrays)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_it_travels_by_both_pickles_with_its_values(device):
    model = TorchModel(normed(), lambda outputs, y: (outputs - y).square(), device=device)
    arrays = examples("y").batch(4)
    for module in (pickle, cloudpickle):
        copy = module.loads(module.dumps(model))
        assert copy.layout == model.layout and copy.description() == model.description()
        assert np.array_equal(start_of(copy), start_of(model))
        assert call(copy, start_of(copy), arrays)[0] == call(model, start_of(model), arrays)[0]


def test_a_large_model_travels_without_its_values():
    model = TorchModel(nn.Linear(2000, 1000), "softmax")
    pickled = cloudpickle.dumps(model)
    assert len(pickled) < 10_000
    copy = pickle.loads(pickled)
    with pytest.raises(ModelError, match=r"values of Linear did not travel.* give parameters="):
        start_of(copy)
    assert np.array_equal(start_of(model), model.starting_parameters())


# What is refused


HOLDS_A_LOCK = partial(print, threading.Lock())


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.lock = threading.Lock()


REFUSED = [
    (lambda: TorchModel(plain, "softmax"), TypeError, "module must be a torch.nn.Module"),
    (lambda: TorchModel(plain(), "hinge"), ValueError, "loss must be one of 'softmax'"),
    (lambda: TorchModel(plain(), "softmax", device=3), TypeError, "device must be a name"),
    (lambda: TorchModel(plain(), "softmax", device="tpux"), ValueError, "got 'tpux'"),
    (
        lambda: TorchModel(plain(), "softmax", precision="float16"),
        ValueError,
        "precision must be one of 'float32', 'bfloat16', got 'float16'",
    ),
    (lambda: TorchModel(plain().double(), "softmax"), TypeError, r"'0.weight' is torch.float64"),
    (lambda: TorchModel(nn.LazyLinear(3), "softmax"), ValueError, "has no shape yet"),
    (lambda: TorchModel(nn.ReLU(), "softmax"), ValueError, "ReLU has no parameter to train"),
    (
        lambda: TorchModel(nn.Sequential(nn.Linear(2, 2), Locked()), "softmax"),
        TypeError,
        r"module '1' \(Locked\) cannot be pickled.*its attribute 'lock': .*__getstate__",
    ),
    (
        lambda: TorchModel(plain(), HOLDS_A_LOCK),
        TypeError,
        "loss cannot be pickled",
    ),
    (
        lambda: TorchModel(plain(), "softmax", device=HOLDS_A_LOCK),
        TypeError,
        "device cannot be pickled",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED)
def test_what_cannot_work_is_refused_with_the_remedy(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_whole_numbers_that_float32_does_not_hold_are_refused():
    module = plain()
    module.register_buffer("large", torch.tensor([2**24 + 1]))
    with pytest.raises(ValueError, match=r"buffer 'large'.*persistent=False"):
        TorchModel(module, "softmax")


WRONG = [
    (nn.Linear(FEATURES, 2), "softmax", "label", DataError, "labels must lie in 0 to 1"),
    (nn.Linear(FEATURES, 2), "squared", "y", ModelError, "2 outputs for each of 8 examples"),
    (plain(), nn.CrossEntropyLoss(), "label", ModelError, 'reduction="none"'),
    (plain(), lambda outputs, targets: 1.0, "label", ModelError, "one loss for each of the 8"),
    (nn.LSTM(FEATURES, 3), "softmax", "label", ModelError, "module must return one tensor"),
]


@pytest.mark.parametrize(("module", "loss", "targets", "kind", "message"), WRONG)
def test_what_does_not_fit_is_named_when_it_is_seen(module, loss, targets, kind, message):
    model = TorchModel(module, loss)
    with pytest.raises(kind, match=re.compile(message)):
        call(model, start_of(model), examples(targets).batch(8))


def test_importing_dbdask_imports_no_torch():
    import subprocess
    import sys

    program = "import dbdask, sys; dbdask.downpour; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
