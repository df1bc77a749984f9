"""Every single operation of the store may fail: a whole snapshot is there all the same."""

import asyncio
import errno
import re
import signal
import threading
from concurrent.futures import Future, wait

import dask
import numpy as np
import pytest
import xarray as xr
from test_downpour import assert_nothing_left, flat
from test_leaving import wait_until
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import dbdask
from dbdask import saving
from dbdask.daemon_threads import DeadlinePassed, call_within, start_call
from dbdask.errors import CheckpointError
from dbdask.models.layout import cut
from dbdask.rpc import store_calls
from dbdask.storage import checkpoint, owner, sealed

SIZE, SHARDS = 10, 3
NEVER = 1 << 30


class Fate:
    """Which operation fails, and how: nothing was done, half of it, or all but the answer."""

    def __init__(self):
        self.restart(NEVER, "nothing")

    def restart(self, index, how):
        self.index, self.how, self.count = index, how, 0

    @property
    def struck(self):
        return self.count > self.index

    def now(self):
        self.count += 1
        return self.count - 1 == self.index


class Failing(WrapperStore):
    """A store of which one change fails; how often an owner renews its name is its own."""

    def __init__(self, store, fate):
        super().__init__(store)
        self.fate = fate

    def _with_store(self, store):
        return type(self)(store, self.fate)

    async def set(self, key, value):
        if key == owner.KEY or not self.fate.now():
            return await self._store.set(key, value)
        if self.fate.how == "half":
            await self._store.set(key, value[: len(value) // 2])
        if self.fate.how == "all":
            await self._store.set(key, value)
        raise OSError(f"cannot put {key}")

    async def set_if_not_exists(self, key, value):
        if not await self._store.exists(key):
            await self.set(key, value)

    async def delete(self, key):
        fails = key != owner.KEY and self.fate.now()
        if not fails or self.fate.how == "all":
            await self._store.delete(key)
        if fails:
            raise OSError(f"cannot delete {key}")

    async def delete_dir(self, prefix):
        """As an object store does it: key after key."""
        for key in sorted([key async for key in self._store.list_prefix(prefix)]):
            await self.delete(key)
        if prefix:  # the folders that are left empty
            await self._store.delete_dir(prefix)

    async def clear(self):
        await self.delete_dir("")


KINDS_AND_HOWS = [
    ("local", "nothing"),
    ("local", "half"),
    ("local", "all"),
    pytest.param("object", "nothing", marks=pytest.mark.slow),
    pytest.param("object", "half", marks=pytest.mark.slow),
    ("object", "all"),
]


def failing_store(kind, tmp_path):
    inner = LocalStore(tmp_path / "run.zarr") if kind == "local" else MemoryStore()
    return Failing(inner, Fate())


@pytest.fixture(params=["local", "object"])
def failing(request, tmp_path):
    return failing_store(request.param, tmp_path)


def take_snapshot(store, number, before=None):
    """All store operations of one snapshot, in the order of a run."""
    values = np.arange(SIZE, dtype=np.float32) * number
    group = checkpoint.name_of(number, 0, "run")
    slices = cut(SIZE, SHARDS)
    checkpoint.begin(store, group, ["parameters", "slot"], SIZE, slices[0][1])
    for start, stop in slices:
        vectors = {"parameters": values[start:stop], "slot": np.zeros(stop - start, np.float32)}
        checkpoint.write_slice(store, group, start, stop, vectors)
    checkpoint.commit(store, group, {"number": number, "ledger": [[0, number, 4]]})
    if before is not None:
        checkpoint.delete(store, before.group)


def assert_whole(store, numbers):
    """The latest snapshot is one of `numbers`, and all of it is right."""
    last = checkpoint.latest(store)
    assert last is not None and last.number in numbers
    assert last.state == {"number": last.number, "ledger": [[0, last.number, 4]]}
    assert checkpoint.vector_names(store, last.group) == ["parameters", "slot"]
    parameters = checkpoint.read_slice(store, last.group, "parameters", 0, SIZE)
    np.testing.assert_array_equal(parameters, np.arange(SIZE, dtype=np.float32) * last.number)
    assert not checkpoint.read_slice(store, last.group, "slot", 0, SIZE).any()
    return last


def operations(store, action):
    """How many changes of the store an action makes."""
    store.fate.restart(NEVER, "nothing")
    action()
    return store.fate.count


@pytest.mark.parametrize(("kind", "how"), KINDS_AND_HOWS)
def test_whichever_operation_of_a_snapshot_fails_one_is_whole(tmp_path, kind, how):
    failing = failing_store(kind, tmp_path)
    checkpoint.create(failing, {"seed": 0})
    take_snapshot(failing, 1)
    count = operations(failing, lambda: take_snapshot(failing, 2, assert_whole(failing, {1})))
    # Its own group, two vectors, their three chunks each, the commit, and as many to delete.
    assert count == 2 * (1 + 2 + 2 * SHARDS + 1)
    number = 2
    for index in range(count):
        before = assert_whole(failing, {number})
        failing.fate.restart(index, how)
        with pytest.raises((CheckpointError, OSError), match="cannot"):
            take_snapshot(failing, number + 1, before)
        assert failing.fate.struck
        failing.fate.restart(NEVER, how)
        after = assert_whole(failing, {number, number + 1})
        assert (after.number > number) == (index >= count // 2 or (index, how) == (9, "all"))
        take_snapshot(failing, number + 2, after)
        number += 2
    assert_whole(failing, {number})


@pytest.mark.parametrize("how", ["nothing", "all"])
def test_a_first_snapshot_that_fails_leaves_a_checkpoint_that_can_be_begun_again(failing, how):
    checkpoint.create(failing, {"seed": 0})
    count = operations(failing, lambda: take_snapshot(failing, 1))
    for index in range(count):
        checkpoint.clear(failing)
        checkpoint.create(failing, {"seed": 0})
        failing.fate.restart(index, how)
        with pytest.raises(CheckpointError, match="cannot put"):
            take_snapshot(failing, 1)
        failing.fate.restart(NEVER, how)
        assert checkpoint.attributes(failing) == {"seed": 0}
        last = checkpoint.latest(failing)
        assert last is None or (index, how) == (count - 1, "all")


def result_of(vector):
    data = xr.Dataset({"x": ("row", np.arange(4.0)), "y": ("row", np.arange(4.0))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    model = dbdask.Network(input_shape=(), layers=[dbdask.Dense(1)], loss="squared")
    status = dbdask.Status("epochs", "done")
    vector = np.array(vector, np.float32)
    return dbdask.Result(model, examples, vector, dbdask.metrics.history.History(), status)


@pytest.mark.parametrize("how", ["nothing", "half", "all"])
def test_a_saved_result_is_whole_or_an_error(tmp_path, monkeypatch, how):
    fate = failing_stores(monkeypatch, "local")
    vector = [2.0, 0.0]
    result = result_of(vector)
    path = tmp_path / "count.zarr"
    result.save(path)
    for index in range(fate.count):
        path = tmp_path / f"{index}.zarr"
        fate.restart(index, how)
        with pytest.raises(OSError, match="cannot put"):
            result.save(path)
        fate.restart(NEVER, how)
        try:
            np.testing.assert_array_equal(dbdask.load(path).vector(), vector)
            assert how == "all"
        except dbdask.ResultError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(("kind", "how"), KINDS_AND_HOWS)
def test_a_result_that_replaces_another_is_whole_or_the_other_still_is(
    tmp_path, monkeypatch, how, kind, caplog
):
    fate = failing_stores(monkeypatch, kind)
    first, second = result_of([2.0, 0.0]), result_of([3.0, 1.0])
    path = tmp_path / "count.zarr"
    first.save(path)
    once = operations_of(fate, lambda: second.save(path, overwrite=True))
    again = operations_of(fate, lambda: first.save(path, overwrite=True))
    assert (once, again) == (4 + 3, 4 + 4)  # four keys of a result, and the root stays
    kept = set()
    for index in range(once):
        path = tmp_path / f"{index}.zarr"
        first.save(path)
        fate.restart(index, how)
        try:
            second.save(path, overwrite=True)
            kept.add("deleting")
            assert "could not be deleted" in caplog.text
        except OSError as error:
            assert str(path) in str(error)
        assert fate.struck
        fate.restart(NEVER, how)
        found = dbdask.load(path).vector().tolist()
        assert found in ([2.0, 0.0], [3.0, 1.0])
        kept.add(found[0])
        first.save(path, overwrite=True)
        np.testing.assert_array_equal(dbdask.load(path).vector(), [2.0, 0.0])
        assert len(sealed.children(str(path))) == 2  # the root, and the one group
    assert kept == {2.0, 3.0, "deleting"}


def operations_of(fate, action):
    fate.restart(NEVER, "nothing")
    action()
    return fate.count


def killed(*arguments):
    raise OSError("killed")


def test_a_process_that_dies_while_it_replaces_a_result_leaves_one(tmp_path, monkeypatch):
    """Nothing is cleaned up then, neither before the root is replaced nor after."""
    first, second = result_of([2.0, 0.0]), result_of([3.0, 1.0])
    monkeypatch.setattr(saving, "_delete", lambda path, names: None)
    path = tmp_path / "count.zarr"
    first.save(path)
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(sealed, "write_slice", killed)
        second.save(path, overwrite=True)
    np.testing.assert_array_equal(dbdask.load(path).vector(), [2.0, 0.0])
    second.save(path, overwrite=True)
    np.testing.assert_array_equal(dbdask.load(path).vector(), [3.0, 1.0])
    assert len(sealed.children(str(path))) > 3
    monkeypatch.undo()
    first.save(path, overwrite=True)
    assert len(sealed.children(str(path))) == 2


# A run


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(240, 6)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(6, 3))).argmax(axis=1)
    return xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})


def train(data, client, **options):
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    model = dbdask.Network(
        input_shape=(6,), layers=[dbdask.Dense(8, "tanh"), dbdask.Dense(3)], loss="softmax"
    )
    settings = {"optimizer": dbdask.adagrad(0.1), "batch_size": 20, "epochs": 2, "replicas": 1}
    return dbdask.downpour(
        model, examples, client=client, shards=2, progress=False, **settings, **options
    )


def failing_stores(monkeypatch, kind):
    """Every store is one of which an operation may fail; its fate comes back."""
    fate, memories = Fate(), {}

    def open_store(place):
        if isinstance(place, MemoryStore):  # a reader's own
            return place
        if kind == "local":
            return Failing(LocalStore(place), fate)
        return Failing(memories.setdefault(place, MemoryStore()), fate)

    monkeypatch.setattr(sealed, "open_store", open_store)
    return fate


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        ("local", 37),
        pytest.param("local", 11, marks=pytest.mark.slow),
        pytest.param("object", 11, marks=pytest.mark.chaos),
    ],
)
def test_a_run_whose_store_fails_is_resumed_and_ends_as_if_nothing_had_been(
    threads_client, data, tmp_path, monkeypatch, kind, every
):
    whole = flat(train(data, threads_client))
    fate = failing_stores(monkeypatch, kind)
    options = {"checkpoint": str(tmp_path / "count.zarr"), "snapshot_every": "1ms"}
    np.testing.assert_array_equal(flat(train(data, threads_client, **options)), whole)
    count = fate.count
    assert count > 40  # several snapshots
    ended = 0
    for index in sorted({*range(12), *range(12, count, every)}):
        path = str(tmp_path / f"{index}.zarr")
        options["checkpoint"] = path
        fate.restart(index, ("nothing", "all")[index % 2])
        try:
            train(data, threads_client, **options)
        except CheckpointError as error:
            assert path in str(error)
            assert "resume=True" in str(error) or "starts anew" in str(error) or index == 0
            ended += 1
        fate.restart(NEVER, "nothing")
        assert_nothing_left(threads_client)
        begun = not sealed.is_empty(path) and checkpoint.latest(path) is not None
        resume = True if begun else "auto"
        again = train(data, threads_client, resume=resume, **options)
        np.testing.assert_array_equal(flat(again), whole)
    assert ended >= 12


# A snapshot of Sandblaster

L2, ITERATIONS = 1e-2, 3
OPERATIONS = 2 * (1 + 4 + 2 * 4 + 1)  # as above: two vectors and a pair, in two shards


def minimise(data, client, **options):
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    settings = {"l2": L2, "tolerance": 0.0, "history_length": 1, "replicas": 1, "shards": 2}
    settings["iterations"] = 2 * ITERATIONS
    return dbdask.sandblaster(
        linear(), examples, client=client, progress=False, **(settings | options)
    )


def linear():
    return dbdask.Network(input_shape=(6,), layers=[dbdask.Dense(3)], loss="softmax")


def objective(data, x):
    """Value and gradient in one process, over all examples at once."""
    rows, gradient = data.sizes["row"], np.empty_like(x)
    loss = linear().loss_and_gradient(
        x, data["x"].values, data["label"].values, weights=None, gradient=gradient
    )
    return loss / rows + L2 / 2 * float(x @ x), gradient / np.float32(rows) + np.float32(L2) * x


def assert_of_one_point(path, data):
    """The last snapshot is whole, and all of it belongs to one point; its iteration comes back."""
    last = checkpoint.latest(path)
    names = checkpoint.vector_names(path, last.group)
    held = {name: checkpoint.VectorReference(path, last.group, name).read() for name in names}
    method = last.state["method"]
    if "gradient" not in held:  # before the first pass
        assert method["evaluations"] == 0 and names == ["parameters"]
        return 0
    loss, gradient = objective(data, held["parameters"])
    assert method["loss"] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(held["gradient"], gradient, atol=1e-6)
    assert {f"{letter}{k}" for letter in "sy" for k in method["pairs"]} < set(names)
    for slot in method["pairs"]:
        s, y = (held[f"{letter}{slot}"].astype(np.float64) for letter in "sy")
        assert method["products"][f"s{slot} y{slot}"] == pytest.approx(s @ y, rel=1e-6)
        before = objective(data, held["parameters"] - held[f"s{slot}"])[1]
        np.testing.assert_allclose(held[f"y{slot}"], gradient - before, atol=1e-6)
    return method["iteration"]


@pytest.mark.parametrize(
    ("kind", "which"),
    [
        ("local", (8, 12, 13, 20)),  # two chunks, the commit, a deletion
        pytest.param("local", range(OPERATIONS), marks=pytest.mark.chaos),
        pytest.param("object", range(OPERATIONS), marks=pytest.mark.chaos),
    ],
    ids=["some local", "local", "object"],
)
def test_whichever_operation_of_a_snapshot_of_sandblaster_fails_one_is_of_one_point(
    threads_client, data, tmp_path, monkeypatch, kind, which
):
    whole = flat(minimise(data, threads_client, iterations=ITERATIONS))
    fate = failing_stores(monkeypatch, kind)
    path = str(tmp_path / "count.zarr")
    options = {"iterations": ITERATIONS, "snapshot_every": "1us"}
    minimise(data, threads_client, checkpoint=path, **options)
    count = fate.count
    assert assert_of_one_point(path, data) == ITERATIONS
    ended = 0
    for index in (count - OPERATIONS + number for number in which):
        path = str(tmp_path / f"{index}.zarr")
        fate.restart(index, ("nothing", "half", "all")[index % 3])
        try:
            minimise(data, threads_client, checkpoint=path, **options)
        except CheckpointError as error:
            assert path in str(error) and "resume=True" in str(error)
            ended += 1
        assert fate.struck
        fate.restart(NEVER, "nothing")
        assert assert_of_one_point(path, data) in (ITERATIONS - 1, ITERATIONS)
        again = minimise(data, threads_client, checkpoint=path, resume=True, **options)
        np.testing.assert_array_equal(flat(again), whole)
        assert assert_of_one_point(path, data) == ITERATIONS
    assert_nothing_left(threads_client)
    assert ended == sum(number < OPERATIONS / 2 for number in which)


# A store that hangs


class Hanging(WrapperStore):
    """A store that takes a key of some pattern in only when it is released."""

    def __init__(self, store, pattern, released, asked=None):
        super().__init__(store)
        self.pattern, self.released = pattern, released
        self.asked = asked or threading.Event()  # is set when a key is waited for

    def _with_store(self, store):
        return type(self)(store, self.pattern, self.released, self.asked)

    async def set(self, key, value):
        await self._wait(key)
        await self._store.set(key, value)

    async def _wait(self, key):
        if re.fullmatch(self.pattern, key):
            self.asked.set()
            await asyncio.wrap_future(self.released)


class Withholding(Hanging):
    """A store that gives a key of some pattern only when it is released."""

    async def get(self, key, prototype=None, byte_range=None):
        await self._wait(key)
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key, value):
        await self._store.set(key, value)


class Undeletable(Hanging):
    """A store that deletes a group of some pattern only when it is released."""

    async def set(self, key, value):
        await self._store.set(key, value)

    async def delete_dir(self, prefix):
        await self._wait(prefix)
        await self._store.delete_dir(prefix)


@pytest.mark.parametrize("algorithm", [train, pytest.param(minimise, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        (r"00000002-.*/parameters/c/1", r"writing snapshot 00000002.* by shard 1 on .*resume=True"),
        (r"00000001-.*/commit/.*", r"committing snapshot 00000001.* the same call starts anew"),
    ],
    ids=["a shard", "the first commit"],
)
def test_a_run_whose_store_hangs_ends_and_can_be_called_again(
    threads_client, data, tmp_path, monkeypatch, algorithm, pattern, match
):
    released, options = Future(), {"checkpoint": str(tmp_path / "run.zarr")}
    monkeypatch.setattr(
        sealed,
        "open_store",
        lambda place: (
            place
            if isinstance(place, MemoryStore)
            else Hanging(LocalStore(place), pattern, released)
        ),
    )
    try:
        with (
            dask.config.set({"dbdask.store": "2s"}),
            pytest.raises(CheckpointError, match=rf"run\.zarr' gave no answer in 2 s.*{match}"),
        ):
            algorithm(data, threads_client, snapshot_every="1us", **options)
        assert_nothing_left(threads_client)
    finally:
        released.set_result(None)
    wait_until(lambda: "dbdask-call" not in {thread.name for thread in threading.enumerate()})
    again = algorithm(data, threads_client, resume="auto", **options)
    np.testing.assert_array_equal(flat(again), flat(algorithm(data, threads_client)))
    last = checkpoint.latest(options["checkpoint"])
    assert [name for name in sealed.children(options["checkpoint"]) if name != "zarr.json"] == [
        last.group
    ]


WHERE = {
    "root": ("zarr.json", "it was read"),
    "owner": ("owner/zarr.json", "looking for its owner"),
    "commit": (r"0.*/commit/zarr.json", "it was read"),
    "vector": (
        r"0.*/parameters/zarr.json",
        r"worker inproc.* read parameters \d+ to \d+ of snapshot 0",
    ),
    "chunk": (r"0.*/parameters/c/0", r"worker inproc.* read parameters 0 to \d+ of snapshot 0"),
}


@pytest.mark.parametrize(
    ("algorithm", "where"),
    [
        *((train, where) for where in WHERE),
        *(
            pytest.param(minimise, where, marks=() if where == "chunk" else pytest.mark.slow)
            for where in WHERE
        ),
    ],
)
def test_a_store_that_hangs_at_the_start_is_an_error_that_says_where(
    threads_client, data, tmp_path, monkeypatch, algorithm, where
):
    pattern, doing = WHERE[where]
    released, path = Future(), str(tmp_path / "run.zarr")
    algorithm(data, threads_client, checkpoint=path)

    def open_store(place):
        if isinstance(place, MemoryStore):
            return place
        return Withholding(LocalStore(place), pattern, released)

    message = rf"run.zarr' gave no answer in 1 s \(dbdask.store\) while {doing}"
    try:
        with (
            monkeypatch.context() as patched,
            dask.config.set({"dbdask.store": "1s"}),
            pytest.raises(CheckpointError, match=message),
        ):
            patched.setattr(sealed, "open_store", open_store)
            algorithm(data, threads_client, checkpoint=path, resume=True)
    finally:
        released.set_result(None)
    assert_nothing_left(threads_client)
    wait_until(lambda: "dbdask-call" not in {thread.name for thread in threading.enumerate()})
    algorithm(data, threads_client, checkpoint=path, resume=True)
    assert len(sealed.children(path)) == 2


class Stores:
    """Stores of folders, of which those that are opened next may hang at keys of some pattern.

    The deadline of a call passes when such a key is asked for, and never before.
    """

    def __init__(self, monkeypatch):
        self.kind, self.pattern, self.released = Hanging, "no key", Future()
        self.asked = threading.Event()
        monkeypatch.setattr(sealed, "open_store", self.open)
        monkeypatch.setattr(store_calls, "call_within", self.call_within)

    def call_within(self, seconds, function, *arguments, what):
        _, done = start_call(function, *arguments)
        while not wait((done,), 0.02).done:
            if self.asked.is_set():
                raise DeadlinePassed
        return done.result()

    def open(self, place):
        if isinstance(place, MemoryStore):
            return place
        return self.kind(LocalStore(place), self.pattern, self.released, self.asked)

    def hang(self, kind, pattern):
        self.kind, self.pattern = kind, pattern
        self.asked.clear()

    def release(self):
        self.pattern = "no key"
        if not self.released.done():
            self.released.set_result(None)
        wait_until(lambda: "dbdask-call" not in {thread.name for thread in threading.enumerate()})
        self.asked.clear()  # at last: a call that began before may ask until it ends


@pytest.fixture
def stores(monkeypatch):
    found = Stores(monkeypatch)
    yield found
    found.release()


def no_answer(path, doing):
    return rf"'{re.escape(path)}' gave no answer in 60 s \(dbdask.store\) while {doing}: its store"


READS = {
    "load": lambda result, examples: dbdask.load(result._vector.path),
    "vector": lambda result, examples: result.vector(),
    "parameters": lambda result, examples: result.parameters,
    "evaluate": lambda result, examples: result.evaluate(examples),
    "predict": lambda result, examples: result.predict(DATA).compute(),
    "save": lambda result, examples: result.save(result._vector.path + "-other"),
}


@pytest.fixture
def saved(tmp_path):
    """A loaded result, and examples of its data."""
    path = str(tmp_path / "model.zarr")
    result = result_of([2.0, 0.0])
    result.save(path)
    return dbdask.load(path), result.examples


DATA = xr.Dataset({"x": ("row", np.arange(4.0)), "y": ("row", np.arange(4.0))})


@pytest.mark.parametrize("name", READS)
def test_what_reads_a_saved_result_ends_if_its_store_hangs(saved, stores, name):
    result, examples = saved
    path = result._vector.path
    stores.hang(Withholding, "zarr.json")
    doing = "it was read" if name == "load" else "parameters 0 to 2 were read"
    with pytest.raises(dbdask.ResultError, match="path=" + no_answer(path, doing)):
        READS[name](result, examples)
    stores.release()
    READS[name](result, examples)


def test_a_store_that_hangs_ends_a_prediction_on_workers_and_a_lazy_parameter(
    threads_client, saved, stores, monkeypatch
):
    monkeypatch.setattr("dbdask.result.EAGER_BYTES", 4)
    result, _ = saved
    words = "path=" + no_answer(result._vector.path, r"parameters 0 to \d were read")

    def lazy():
        yield result.predict(DATA.chunk(row=1)).data
        yield result.parameters["dense_0_weights"].data

    stores.hang(Withholding, "parameters/c/0")
    for array in lazy():
        error = error_of(threads_client, array)
        assert isinstance(error, dbdask.ResultError) and re.search(words, str(error))
    stores.release()
    for array in lazy():
        assert np.isfinite(threads_client.compute(array).result()).all()
    wait_until(lambda: not threads_client.run_on_scheduler(keys_of))


def error_of(client, array):
    """The error that an array's computation ends with; nothing of it stays on the cluster."""
    future = client.compute(array)
    try:
        return future.exception()
    finally:
        future.release()


def keys_of(dask_scheduler):
    return list(dask_scheduler.tasks)


def test_threads_that_predict_wait_once_for_a_store_that_hangs(saved, stores, monkeypatch):
    result, _ = saved
    predictor = result._on(DATA)[2]
    reads, together = [], threading.Barrier(3)
    hang = type(result._vector).read

    def read(*arguments):
        reads.append(arguments)
        return hang(*arguments)

    monkeypatch.setattr(type(result._vector), "read", read)
    stores.hang(Withholding, "parameters/c/0")
    errors = []

    def open_it():
        together.wait(120)
        with pytest.raises(dbdask.ResultError) as caught:
            predictor.opened()
        errors.append(caught.value)

    threads = [threading.Thread(target=open_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(errors) == 3 and len(reads) == 1
    stores.release()
    assert predictor.opened()[-1].tolist() == [2.0, 0.0]


SAVES = {
    "a first root": ("zarr.json", "its vector was made", False),
    "a first chunk": (r"parameters/c/0", "the parameters were written", False),
    "a root": (r"0.*-\w+/zarr.json", "its vector was made", True),
    "a chunk": (r"0.*/parameters/c/0", "the parameters were written", True),
    "a description": (r"0.*/description/zarr.json", "the description was written", True),
}


@pytest.mark.parametrize("what", SAVES)
def test_a_save_ends_if_its_store_hangs_and_the_result_of_before_stays(
    tmp_path, stores, what, caplog
):
    pattern, doing, overwrite = SAVES[what]
    path = str(tmp_path / "model.zarr")
    first, second = result_of([2.0, 0.0]), result_of([3.0, 1.0])
    if overwrite:
        first.save(path)
    stores.hang(Hanging, pattern)
    with pytest.raises(TimeoutError, match="path=" + no_answer(path, doing)):
        second.save(path, overwrite=overwrite)
    if overwrite:
        stores.asked.clear()
        assert dbdask.load(path).vector().tolist() == [2.0, 0.0]
    stores.release()
    if overwrite:  # what was begun is deleted as soon as the store answers
        assert sealed.children(path) == ["description", "parameters", "zarr.json"]
        assert dbdask.load(path).vector().tolist() == [2.0, 0.0]
    second.save(path, overwrite=True)
    assert dbdask.load(path).vector().tolist() == [3.0, 1.0]


def test_a_result_is_saved_though_what_it_replaces_cannot_be_deleted(tmp_path, stores, caplog):
    path = str(tmp_path / "model.zarr")
    result_of([2.0, 0.0]).save(path)
    stores.hang(Undeletable, "description")
    result_of([3.0, 1.0]).save(path, overwrite=True)
    assert "(dbdask.store) while what no result needs was deleted" in caplog.text
    stores.asked.clear()
    assert dbdask.load(path).vector().tolist() == [3.0, 1.0]


@pytest.mark.parametrize("overwrite", [False, True])
def test_ctrl_c_ends_a_save_at_once(tmp_path, stores, monkeypatch, overwrite):
    path = str(tmp_path / "model.zarr")
    first, second = result_of([2.0, 0.0]), result_of([3.0, 1.0])
    if overwrite:
        first.save(path)
    stores.hang(Hanging, r"(0.*/)?parameters/c/0")
    monkeypatch.setattr(store_calls, "call_within", call_within)

    def interrupt():
        stores.asked.wait(120)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with dask.config.set({"dbdask.store": "1h"}):
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            second.save(path, overwrite=overwrite)
    if overwrite:
        assert dbdask.load(path).vector().tolist() == [2.0, 0.0]


def test_a_save_that_waits_is_named_in_the_log(tmp_path, stores, monkeypatch, caplog):
    monkeypatch.setattr("dbdask.daemon_threads.WARN_SECONDS", 0.05)
    monkeypatch.setattr(store_calls, "call_within", call_within)
    stores.hang(Hanging, "parameters/c/0")
    words = r"model.zarr' gave no answer in 1.5 s .* while the parameters were written"
    with dask.config.set({"dbdask.store": "1500ms"}), pytest.raises(TimeoutError, match=words):
        result_of([2.0, 0.0]).save(tmp_path / "model.zarr")
    assert re.search("model.zarr' while the parameters .* for . s, 1.5 s at most", caplog.text)


def test_an_error_of_the_store_is_no_passed_deadline(tmp_path, stores, monkeypatch):
    stores.released.set_exception(TimeoutError(errno.ETIMEDOUT, "timed out"))
    monkeypatch.setattr(store_calls, "call_within", call_within)
    stores.hang(Hanging, "parameters/c/0")
    with pytest.raises(OSError, match="model.zarr' cannot be written: .*timed out"):
        result_of([2.0, 0.0]).save(tmp_path / "model.zarr")


def test_parameters_of_a_result_whose_store_hangs_are_an_error_that_names_it(
    threads_client, data, tmp_path, stores
):
    result, path = train(data, threads_client), str(tmp_path / "model.zarr")
    result.save(path)
    loaded = dbdask.load(path)
    stores.hang(Withholding, "zarr.json")
    words = r"parameters= were not read: path=" + no_answer(path, r"parameters 0 to \d+ were read")
    with pytest.raises(CheckpointError, match=words):
        train(data, threads_client, parameters=loaded)


# A checkpoint that is deleted


def delete_for_good(path, name):
    """Delete, again where a snapshot was being written into the folder that was to be removed."""
    for _ in range(100):
        try:
            return sealed.delete(path, name)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    raise AssertionError(f"{name} fills faster than it is deleted")


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [
        (train, "all"),
        (train, "root"),
        (train, "snapshots"),
        (minimise, "all"),
        pytest.param(minimise, "root", marks=pytest.mark.slow),
        pytest.param(minimise, "snapshots", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_that_is_deleted_while_the_run_trains_is_whole_at_its_end(
    threads_client, data, tmp_path, algorithm, what, caplog
):
    path, deleted = str(tmp_path / "run.zarr"), []

    def delete(record):
        if deleted:
            return
        deleted.append(record)
        for name in sealed.children(path):
            if what == "all" or (name == "zarr.json") == (what == "root"):
                delete_for_good(path, name)

    whole = flat(algorithm(data, threads_client))
    options = {"checkpoint": path, "snapshot_every": "1us"}
    result = algorithm(data, threads_client, callbacks=[delete], **options)
    assert deleted and result.status.ok
    np.testing.assert_array_equal(flat(result), whole)
    assert sealed.children(path) == [checkpoint.latest(path).group, "zarr.json"]
    assert what == "snapshots" or "begun anew" in caplog.text
    again = algorithm(data, threads_client, resume=True, **options)
    np.testing.assert_array_equal(flat(again), whole)
