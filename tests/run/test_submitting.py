"""Tasks and their releases, in the order in which the client sends them."""

from itertools import pairwise

import numpy as np
import xarray as xr

import dbdask


def small_run(client, source, **options):
    net = dbdask.Network(input_shape=4, layers=[dbdask.Dense(2)], loss="softmax")
    examples = dbdask.Examples(source, inputs="x", targets="label", along="row")
    return dbdask.downpour(net, examples, client=client, progress=False, **options)


def rows(count):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    return xr.Dataset({"x": (("row", "column"), rng.random((count, 4))), "label": ("row", labels)})


def test_a_task_is_released_behind_the_next_one(tmp_path, threads_client, monkeypatch):
    """What a client sends within 10 ms after another message waits: the next task comes first."""
    rows(400).chunk(row=40).to_zarr(tmp_path / "s.zarr", consolidated=False)
    sent, send = [], threads_client._send_to_scheduler

    def note(message):
        if message["op"] == "update-graph":
            sent.extend(("task", str(key)) for key in message["keys"])
        if message["op"] == "client-releases-keys":
            sent.extend(("release", str(key)) for key in message["keys"])
        send(message)

    monkeypatch.setattr(threads_client, "_send_to_scheduler", note)
    small_run(threads_client, tmp_path / "s.zarr", replicas=1, epochs=2, batch_size=10)
    portions = [(what, key) for what, key in sent if key.startswith("dbdask-portion")]
    tasks = [key for what, key in portions if what == "task"]
    released = [key for what, key in portions if what == "release"]
    assert len(tasks) > 4 and released == tasks
    for before, after in pairwise(tasks):
        assert portions.index(("task", after)) < portions.index(("release", before))


def test_values_that_workers_can_read_take_no_thread(tmp_path, threads_client, monkeypatch):
    rows(400).chunk(row=40).to_zarr(tmp_path / "s.zarr", consolidated=False)
    beside = []
    monkeypatch.setattr("dbdask.run.submitting.beside_loop", lambda *call: beside.append(call))
    small_run(threads_client, tmp_path / "s.zarr", epochs=1, batch_size=10)
    assert not beside
