"""`TorchModel` in both functions: against a network, against plain PyTorch, and back again."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modules import (  # noqa: E402
    CLASSES,
    DEVICES,
    FEATURES,
    ROWS,
    SEEN,
    Looking,
    assert_same,
    data,
    dropping,
    examples,
    nn,
    normed,
    plain,
)

import dbdask  # noqa: E402
from dbdask.errors import ModelError  # noqa: E402
from dbdask.torch import TorchModel  # noqa: E402
from dbdask.worker.context import contexts_on  # noqa: E402

OPTIONS = {"batch_size": 20, "progress": False}


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


def train(model, client, *, given=None, **options):
    options = {"optimizer": dbdask.sgd(0.1)} | OPTIONS | options
    return dbdask.downpour(model, given or examples(), client=client, **options)


def vector(result):
    return np.concatenate([v.values.ravel() for v in result.parameters.data_vars.values()])


def losses(result):
    return result.history["loss"].values


def network():
    return dbdask.Network(
        input_shape=FEATURES,
        layers=[dbdask.Dense(8, "tanh"), dbdask.Dense(CLASSES)],
        loss="softmax",
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "rule", [pytest.param(dbdask.sgd(0.1), marks=pytest.mark.slow), dbdask.adagrad(0.05)]
)
def test_one_replica_has_the_losses_of_the_same_network(threads_client, rule, device):
    model = TorchModel(plain(), "softmax", device=device)
    options = {"replicas": 1, "epochs": 3, "optimizer": rule}
    ours = train(model, threads_client, **options)
    theirs = train(network(), threads_client, parameters=model.starting_parameters(), **options)
    assert ours.status.ok and len(losses(ours)) > 3
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-5)
    scores = ours.evaluate(examples()), theirs.evaluate(examples())
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("l2", "iterations"), [(0.0, 12), pytest.param(0.01, 30, marks=pytest.mark.slow)]
)
def test_sandblaster_has_the_losses_of_the_same_network(threads_client, l2, iterations, device):
    """The losses are equal to 1e-5 for as many iterations as float32 allows.

    L-BFGS divides by differences of gradients, so each iteration enlarges the rounding of those
    before. These labels can be told apart without error, so without `l2` the loss falls towards 0
    while the rounding grows, and after the 20th iteration the losses are 1e-5 apart. With `l2`
    both runs approach one minimum, where the losses stay together.
    """
    model = TorchModel(plain(), "softmax", device=device)
    given = dbdask.Examples(data().load(), inputs="x", targets="label", along="t")
    options = {"iterations": iterations, "l2": l2, "replicas": 1, "tolerance": 0.0}
    options |= {"client": threads_client, "progress": False}
    ours = dbdask.sandblaster(model, given, **options)
    start = model.starting_parameters()
    theirs = dbdask.sandblaster(network(), given, parameters=start, **options)
    assert len(losses(ours)) == iterations + 1
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-5)
    assert losses(ours)[-1] < 0.5 * losses(ours)[0]


def in_plain_torch(module, epochs, rate=0.1):
    """Train a module in a loop over the same minibatches."""
    given, module = examples(), module.train()
    for epoch in range(epochs):
        for inputs, labels, _ in given.minibatches(20, epoch=epoch):
            outputs = module(torch.from_numpy(inputs))
            nn.functional.cross_entropy(outputs, torch.from_numpy(labels)).backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= rate * parameter.grad
                    parameter.grad = None
    return module.state_dict()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_batch_norm_with_one_replica_is_that_of_plain_pytorch(threads_client, shards, device):
    model = TorchModel(normed(), "softmax", device=device)
    result = train(model, threads_client, replicas=1, epochs=2, shards=shards)
    found, wanted = model.state_dict(result), in_plain_torch(normed(), 2)
    assert found["1.num_batches_tracked"] == 2 * ROWS / 20
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "client", ["threads", pytest.param("processes", marks=pytest.mark.slow)], indirect=True
)
def test_batch_norm_of_two_replicas_describes_the_data(client, device):
    """Each state of the statistics is one that a replica has computed: no sum of changes."""
    model = TorchModel(normed(), "softmax", device=device)
    result = train(model, client, replicas=2, epochs=8, n_push=2, n_fetch=2)
    found = model.state_dict(result)
    count = int(found["1.num_batches_tracked"])
    assert 8 * ROWS / 20 / 2 * 0.3 < count <= 8 * ROWS / 20
    module = normed()
    module.load_state_dict(found)
    inside = module[0](torch.from_numpy(examples().batch(ROWS).inputs))
    mean, variance = inside.mean(dim=0), inside.var(dim=0)
    assert ((found["1.running_mean"] - mean).abs() < 0.5 * variance.sqrt()).all()
    assert ((found["1.running_var"] / variance).log().abs() < 0.7).all()
    assert result.evaluate(examples())["accuracy"] > 0.85


@pytest.mark.parametrize("device", DEVICES)
def test_sandblaster_moves_buffers_by_their_mean_change_at_accepted_points(threads_client, device):
    model = TorchModel(normed(), "softmax", device=device)
    result = dbdask.sandblaster(
        model, examples(), client=threads_client, iterations=12, shards=2, progress=False
    )
    history = result.history
    found = model.state_dict(result)
    # One at the first point, and one at every accepted point.
    assert found["1.num_batches_tracked"] == 1 + int(history["iteration"].values[-1])
    assert losses(result)[-1] < 0.5 * losses(result)[0]
    assert result.evaluate(examples())["accuracy"] > 0.8


@pytest.mark.parametrize("device", DEVICES)
def test_one_pass_of_sandblaster_is_one_step_of_the_running_mean(threads_client, device):
    model, given = TorchModel(normed(), "softmax", device=device), examples()
    result = dbdask.sandblaster(
        model, given, client=threads_client, tolerance=1e9, portion_size=100, progress=False
    )
    assert result.status.reason == "tolerance"  # at the first point
    inside = normed()[0](torch.from_numpy(given.batch(ROWS).inputs)).mean(dim=0)
    found = model.state_dict(result)["1.running_mean"]
    np.testing.assert_allclose(found, 0.1 * inside.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_frozen_part_stays_as_it_is_to_the_bit(threads_client, device):
    module = plain()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.detach().numpy().copy()
    model = TorchModel(module, "softmax", device=device)
    rule = dbdask.adam(0.05, weight_decay=0.1)
    for result in (
        train(model, threads_client, optimizer=rule, clip_norm=0.1),
        dbdask.sandblaster(model, examples(), client=threads_client, iterations=4, progress=False),
    ):
        assert np.array_equal(result.parameters["0.weight"], before)
        assert not np.array_equal(result.parameters["2.weight"], module[2].weight.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_with_one_replica_is_the_same_to_the_bit(threads_client, device):
    model = TorchModel(dropping(), "softmax", device=device)
    first, second, other = (
        train(model, threads_client, replicas=1, seed=seed) for seed in (4, 4, 5)
    )
    assert np.array_equal(vector(first), vector(second))
    assert not np.array_equal(vector(first), vector(other))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "client", [pytest.param("threads", marks=pytest.mark.slow), "processes"], indirect=True
)
def test_it_trains_predicts_scores_and_is_saved(client, tmp_path, device):
    model = TorchModel(normed(), "softmax", device=device)
    train_on, held_out = examples().split(0.8, seed=0)
    result = train(
        model,
        client,
        given=train_on,
        epochs=4,
        validation=held_out,
        keep="best",
        checkpoint=str(tmp_path / "run.zarr"),
        shard_copies=2,
    )
    assert result.status.ok and result.evaluate(held_out)["accuracy"] > 0.8
    labels = result.predict(data())
    assert labels.dims == ("t",) and float((labels == data()["label"]).mean()) > 0.8
    chances = result.predict_proba(data())
    np.testing.assert_allclose(chances.sum("class"), 1, rtol=1e-5)
    result.save(str(tmp_path / "saved.zarr"))
    with pytest.raises(dbdask.ResultError, match="give the model as model="):
        dbdask.load(str(tmp_path / "saved.zarr"))
    loaded = dbdask.load(
        str(tmp_path / "saved.zarr"), model=TorchModel(normed(), "softmax", device=device)
    )
    assert loaded.evaluate(held_out) == result.evaluate(held_out)
    assert not any(client.run(contexts_on).values())


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_resumes_with_the_buffers_of_the_snapshot(threads_client, tmp_path, device):
    path = str(tmp_path / "run.zarr")
    model = TorchModel(normed(), "softmax", device=device)
    whole = train(model, threads_client, replicas=1, epochs=2)
    train(model, threads_client, replicas=1, epochs=1, checkpoint=path)
    rest = train(model, threads_client, replicas=1, epochs=2, checkpoint=path, resume=True)
    assert_same(vector(rest), vector(whole), device)
    other = TorchModel(plain(), "softmax")
    with pytest.raises((dbdask.CheckpointError, ValueError)):
        train(other, threads_client, checkpoint=path, resume=True)


@pytest.mark.parametrize("device", DEVICES)
def test_a_large_module_starts_from_its_values_without_carrying_them(process_client, device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(FEATURES, 200_000), nn.Tanh(), nn.Linear(200_000, CLASSES))
    model = TorchModel(module, "softmax", device=device)
    given = examples().isel(t=slice(40))
    result = train(model, process_client, given=given, optimizer=dbdask.sgd(1e-6))
    assert len(model.__getstate__()["_skeleton"].pickled) < 10_000
    wanted = module[0].weight.detach().numpy()
    np.testing.assert_allclose(result.parameters["0.weight"], wanted, atol=1e-3)
    assert not np.array_equal(result.parameters["0.weight"], wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_the_device_may_depend_on_the_worker(threads_client, device):
    asked = sorted(threads_client.scheduler_info()["workers"])
    model = TorchModel(
        plain(), "softmax", device=lambda address: dict.fromkeys(asked, device)[address]
    )
    assert train(model, threads_client).status.ok
    missing = TorchModel(plain(), "softmax", device=lambda address: "cuda:99")
    with pytest.raises(ModelError, match=r"device='cuda:99' is not on worker inproc:"):
        train(missing, threads_client)


@pytest.mark.parametrize("device", DEVICES)
def test_values_are_trained_with_a_loss_of_ones_own(threads_client, device):
    model = TorchModel(plain(), nn.HuberLoss(reduction="none"), device=device)
    result = train(model, threads_client, given=examples("y").standardize(), epochs=5)
    scores = result.evaluate(examples("y"))
    assert scores["r2"] > 0.7
    assert result.predict(data()).sizes == {"t": ROWS, "k": CLASSES}


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_learns_and_keeps_its_parameters_in_float32(threads_client, device):
    model = TorchModel(Looking(), "softmax", device=device, precision="bfloat16")
    SEEN.clear()
    result = train(model, threads_client, optimizer=dbdask.adam(0.02), replicas=2, epochs=6)
    assert {dtype for _, _, dtype in SEEN} == {torch.bfloat16}
    assert losses(result)[-1] < 0.5 * losses(result)[0]
    assert result.evaluate(examples())["accuracy"] > 0.85
    found = torch.from_numpy(vector(result))
    assert not torch.equal(found, found.bfloat16().float())
