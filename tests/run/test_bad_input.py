"""Bad input to the public functions: refused by name, with the rule and the remedy, at no cost.

A case is what is done, the error, and what its message says: the argument or the place, the value,
the rule or the remedy. After every refusal a kept checkpoint and a saved result are as they were,
and nothing is left on the cluster.
"""

import re
import time
from dataclasses import dataclass
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left

import dbdask
from dbdask import Dense, Examples, Network
from dbdask.storage import checkpoint

ROWS = 120


def make_data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 6)).astype(np.float32)
    label = np.arange(ROWS) % 3
    return xr.Dataset(
        {
            "x": (("row", "feature"), inputs),
            "label": ("row", label),
            "value": ("row", inputs[:, 0]),
            "weight": ("row", np.ones(ROWS, np.float32)),
            "utterance": ("row", np.arange(ROWS) // 20),
            "word": ("row", np.array(["a", "b", "c"])[label]),
            "date": ("row", np.arange(ROWS).astype("M8[D]").astype("M8[ns]")),
        },
        coords={"row": np.arange(ROWS)},
    )


def network(units=3, inputs=6, loss="softmax"):
    return Network(input_shape=inputs, layers=[Dense(units)], loss=loss)


HUGE = Network(input_shape=6, layers=[Dense(10**6), Dense(10**6), Dense(3)], loss="softmax")


@dataclass
class Given:
    """What the cases start from."""

    folder: object
    client: object
    empty: object  # a client of a cluster without workers
    data: xr.Dataset
    store: str
    result: object = None
    checkpoint: str = ""
    batch_checkpoint: str = ""
    saved: str = ""

    def path(self, name):
        return str(self.folder / name)

    def examples(self, data=None, **options):
        settings = {"inputs": "x", "targets": "label", "along": "row"} | options
        return Examples(self.data if data is None else data, **settings)

    def downpour(self, model=None, examples=None, **options):
        settings = {"client": self.client, "batch_size": 20, "progress": False} | options
        examples = self.examples() if examples is None else examples
        return dbdask.downpour(network() if model is None else model, examples, **settings)

    def sandblaster(self, model=None, examples=None, **options):
        settings = {"client": self.client, "iterations": 2, "progress": False} | options
        examples = self.examples() if examples is None else examples
        return dbdask.sandblaster(network() if model is None else model, examples, **settings)

    def changed(self, name, at, value):
        """The data with another value of a variable at some positions."""
        values = self.data[name].values.astype(np.float32)
        values[at] = value
        return self.data.assign({name: (self.data[name].dims, values)})

    def with_values(self, **variables):
        return self.data.assign({name: ("row", values) for name, values in variables.items()})


@pytest.fixture(scope="module")
def given(threads_client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    data = make_data()
    numbers = data.drop_vars(["word", "date"])
    numbers.chunk(row=30).to_zarr(folder / "store.zarr", consolidated=False)
    (folder / "folder").mkdir()
    (folder / "folder" / "notes").write_text("mine")
    (folder / "file").write_text("mine")
    zarr.create_array(str(folder / "unnamed.zarr"), name="x", shape=(3,), dtype="f4")
    for name, length in (("label", 3), ("x", 4)):
        options = {"shape": (length,), "dtype": "i4", "dimension_names": ["row"]}
        zarr.create_array(str(folder / "uneven.zarr"), name=name, **options)
    numbers.chunk(row=30).to_zarr(folder / "damaged.zarr", consolidated=False)
    chunk = folder / "damaged.zarr" / "x" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:9])
    no_workers = LocalCluster(processes=False, n_workers=0, dashboard_address=":0")
    with no_workers as cluster, Client(cluster, set_as_default=False) as empty:
        found = Given(folder, threads_client, empty, data, str(folder / "store.zarr"))
        found.checkpoint, found.batch_checkpoint = found.path("run.zarr"), found.path("batch.zarr")
        found.result = found.downpour(checkpoint=found.checkpoint)
        found.sandblaster(checkpoint=found.batch_checkpoint)
        found.saved = found.path("model.zarr")
        found.result.save(found.saved)
        yield found


# Examples

EXAMPLES = [
    ("a number as data", lambda g: g.examples(3), TypeError, r"data must be .*Dataset, got int"),
    (
        "an array as data",
        lambda g: g.examples(g.data.x),
        TypeError,
        r"data is a DataArray.*to_data",
    ),
    (
        "no such path",
        lambda g: g.examples(g.path("none")),
        FileNotFoundError,
        r"data: no such path",
    ),
    ("no Zarr", lambda g: g.examples(g.path("folder")), ValueError, r"folder is not a Zarr.*give"),
    ("a file", lambda g: g.examples(g.path("file")), ValueError, r"file' is a file, not a Zarr.*"),
    ("no URL", lambda g: g.examples("zzz://a"), ValueError, r"data: cannot open .*'zzz://a'.*inst"),
    (
        "no dimension names",
        lambda g: g.examples(g.path("unnamed.zarr")),
        ValueError,
        r"no array of .*unnamed.zarr has dimension names \(found: x\); write it with xarray",
    ),
    (
        "inputs unknown",
        lambda g: g.examples(inputs="y"),
        ValueError,
        r"inputs: no variable 'y'.*it h",
    ),
    (
        "inputs None",
        lambda g: g.examples(inputs=None),
        TypeError,
        r"inputs must be .*list.*, got None",
    ),
    (
        "inputs a number",
        lambda g: g.examples(inputs=3),
        TypeError,
        r"inputs must be .*name.*, got 3",
    ),
    ("inputs none", lambda g: g.examples(inputs=[]), ValueError, r"inputs must name at least one"),
    (
        "inputs of numbers",
        lambda g: g.examples(inputs=["x", 3]),
        TypeError,
        r"inputs: a variable is a name or a DataArray, got int",
    ),
    (
        "inputs twice",
        lambda g: g.examples(inputs=["x", "x"]),
        ValueError,
        r"inputs must not name a variable twice, got 'x'",
    ),
    (
        "inputs text",
        lambda g: g.examples(inputs="word"),
        TypeError,
        r"inputs: .*'word' has dtype text",
    ),
    (
        "inputs dates",
        lambda g: g.examples(inputs="date"),
        TypeError,
        r"'date' has dtype datetime64",
    ),
    ("targets unknown", lambda g: g.examples(targets="y"), ValueError, r"targets: no variable 'y'"),
    (
        "targets dates",
        lambda g: g.examples(targets="date"),
        TypeError,
        r"targets: .*'date'.*numbers",
    ),
    (
        "lengths that differ",
        lambda g: g.examples(targets=xr.DataArray(np.ones(9), dims="row", name="t")),
        ValueError,
        r"targets: DataArray 't' has length 9 along 'row', .* has 120; align",
    ),
    (
        "lengths that differ in the store",
        lambda g: g.examples(g.path("uneven.zarr")),
        ValueError,
        r"dimension 'row' has length \d and, in variable '\w+', \d; every variable must",
    ),
    ("along unknown", lambda g: g.examples(along="t"), ValueError, r"along: no dimension 't'.*row"),
    ("along a number", lambda g: g.examples(along=3), TypeError, r"along must be a dim.*, got 3"),
    ("along none", lambda g: g.examples(along=[]), ValueError, r"along must name at least one"),
    ("along twice", lambda g: g.examples(along=["row"] * 2), ValueError, r"along must not .*twice"),
    (
        "window even",
        lambda g: g.examples(window={"row": 4}),
        ValueError,
        r"\['row'\] must be odd.* 4",
    ),
    (
        "window zero",
        lambda g: g.examples(window={"row": 0}),
        ValueError,
        r"at least 1, got 0; give",
    ),
    ("window below", lambda g: g.examples(window={"row": -3}), ValueError, r"at least 1, got -3"),
    ("window float", lambda g: g.examples(window={"row": 3.0}), TypeError, r"odd width .*got 3.0"),
    (
        "window a number",
        lambda g: g.examples(window=11),
        TypeError,
        r'such as {"row": 11}, got int',
    ),
    (
        "window too wide",
        lambda g: g.examples(window={"row": 121}),
        ValueError,
        r"window: 121 positions along 'row' are more than its 120; give a narrower",
    ),
    (
        "window too far",
        lambda g: g.examples(window={"row": (120, 121)}),
        ValueError,
        r"window\['row'\] is \(120, 121\), but 'row' has 120 positions",
    ),
    (
        "window backwards",
        lambda g: g.examples(window={"row": (2, -2)}),
        ValueError,
        r"first <= last, got \(2, -2\)",
    ),
    (
        "window along features",
        lambda g: g.examples(window={"feature": 3}),
        ValueError,
        r"window: dimension 'feature' is not in along=\('row',\)",
    ),
    ("edges", lambda g: g.examples(edges="loop"), ValueError, r"edges must be one of.*got 'loop'"),
    (
        "missing",
        lambda g: g.examples(missing="no"),
        ValueError,
        r"missing must be one of.*got 'no'",
    ),
    ("groups unknown", lambda g: g.examples(groups="g"), ValueError, r"groups: no variable 'g'"),
    (
        "groups wide",
        lambda g: g.examples(groups="x"),
        ValueError,
        r"groups: .*'x'.*one value for each",
    ),
    (
        "weights text",
        lambda g: g.examples(weights="word"),
        TypeError,
        r"weights: .*'word'.*numbers",
    ),
    (
        "weights wide",
        lambda g: g.examples(weights="x"),
        ValueError,
        r"weights: .*one value for each",
    ),
    (
        "classes none",
        lambda g: g.examples(classes=[]),
        ValueError,
        r"classes must have at least one",
    ),
    ("classes twice", lambda g: g.examples(classes=[1, 1]), ValueError, r"unique, got 1 twice"),
    (
        "classes text",
        lambda g: g.examples(classes="abc"),
        TypeError,
        r"a list of labels, got .*'abc'",
    ),
    (
        "classes a number",
        lambda g: g.examples(classes=3),
        TypeError,
        r"classes must be a list.*got 3",
    ),
    (
        "classes NaN",
        lambda g: g.examples(classes=[np.nan]),
        ValueError,
        r"numbers or text, got nan",
    ),
    (
        "classes None",
        lambda g: g.examples(classes=[None]),
        ValueError,
        r"numbers or text, got None",
    ),
    (
        "classes of another kind",
        lambda g: g.examples(classes=["a"]),
        ValueError,
        r"classes: the labels are like 'a', but variable 'label' has dtype int64",
    ),
    (
        "classes without targets",
        lambda g: g.examples(targets=None, classes=[1]),
        ValueError,
        r"classes needs targets, got targets=None",
    ),
    (
        "no rows",
        lambda g: g.examples(g.data.isel(row=slice(0))),
        ValueError,
        r"'row' of the given Dataset has length 0: no examples",
    ),
    ("a misspelt argument", lambda g: g.examples(wnidow={"row": 3}), TypeError, r"'wnidow'"),
    ("an assignment", lambda g: setattr(g.examples(), "recipe", 1), AttributeError, r"'recipe'"),
    (
        "isel nothing",
        lambda g: g.examples().isel(row=[]),
        ValueError,
        r"isel: 'row' selects nothing",
    ),
    ("isel beyond", lambda g: g.examples().isel(row=[500]), IndexError, r"'row' has 120 .* 500 is"),
    ("isel text", lambda g: g.examples().isel(row="5"), TypeError, r"isel: 'row' takes .* got '5'"),
    (
        "isel float",
        lambda g: g.examples().isel(row=1.5),
        TypeError,
        r"isel: 'row' takes .* got 1.5",
    ),
    (
        "isel None",
        lambda g: g.examples().isel(row=None),
        TypeError,
        r"isel: 'row' takes .* got None",
    ),
    (
        "isel feature",
        lambda g: g.examples().isel(feature=1),
        ValueError,
        r"'feature' is not in along",
    ),
    ("isel down", lambda g: g.examples().isel(row=[5, 3]), ValueError, r"ascend without repeats"),
    (
        "sel unknown",
        lambda g: g.examples().sel(row=500),
        KeyError,
        r"sel: 'row' has no .* 500 .*119",
    ),
    ("sel feature", lambda g: g.examples().sel(feature=1), ValueError, r"sel: dimension 'feature'"),
    (
        "sel without a coordinate",
        lambda g: g.examples(g.data.drop_vars("row")).sel(row=1),
        ValueError,
        r"sel: 'row' has no coordinate; use isel",
    ),
    ("where array", lambda g: g.examples().where(np.ones(ROWS, bool)), TypeError, r"got ndarray"),
    (
        "where numbers",
        lambda g: g.examples().where(g.data.label),
        TypeError,
        r"dtype bool, got int64",
    ),
    (
        "where nothing",
        lambda g: g.examples().where(g.data.label > 5),
        ValueError,
        r"no examples are l",
    ),
    (
        "split none",
        lambda g: g.examples().split(),
        ValueError,
        r"split needs at least one fraction",
    ),
    ("split 0", lambda g: g.examples().split(0.0), ValueError, r"above 0 and below 1, got 0.0"),
    ("split too much", lambda g: g.examples().split(0.8, 0.8), ValueError, r"at most 1, got 1.6"),
    ("split text", lambda g: g.examples().split("0.9"), TypeError, r"must be a number, got '0.9'"),
    (
        "split to nothing",
        lambda g: g.examples().split(1e-4),
        ValueError,
        r"0.0001 gets none of the",
    ),
    ("split seed", lambda g: g.examples().split(0.5, seed=-1), ValueError, r"split: seed.*got -1"),
    ("split seed text", lambda g: g.examples().split(0.5, seed="a"), TypeError, r"seed .*got 'a'"),
    (
        "standardize per",
        lambda g: g.examples().standardize(per="row"),
        ValueError,
        r"per .*got 'row'",
    ),
    (
        "standardize targets",
        lambda g: g.examples().standardize(targets="yes"),
        TypeError,
        r"targets must be True, False or None, got 'yes'",
    ),
    (
        "standardize nothing",
        lambda g: g.examples(g.changed("x", slice(None), np.nan)).standardize(client=g.client),
        dbdask.DataError,
        r"inputs: variable 'x' has no value that is not missing; leave it out",
    ),
    (
        "standardize infinity",
        lambda g: g.examples(g.changed("x", (3, 2), np.inf)).standardize(client=g.client),
        dbdask.DataError,
        r"variable 'x' holds an infinite value.*correct it",
    ),
    (
        "check on an address",
        lambda g: g.examples().check("tcp://a"),
        TypeError,
        r"client .*'tcp://a'",
    ),
    (
        "check a group that returns",
        lambda g: g.examples(
            g.with_values(utterance=np.arange(ROWS) // 20 % 2), groups="utterance"
        ).check(g.client),
        dbdask.DataError,
        r"groups: 'utterance' is 0, then 1, then 0 again.*sort",
    ),
    (
        "check a truncated chunk",
        lambda g: g.examples(g.path("damaged.zarr")).check(g.client),
        dbdask.DataError,
        r"'x' at \[30:60, 0:6\] of .*damaged.zarr cannot be read.*write it again",
    ),
    (
        "find_classes of vectors",
        lambda g: g.examples(targets="x").find_classes(g.client),
        ValueError,
        r"find_classes needs one label an example, target_shape is \(6,\)",
    ),
]

# Models and optimizers

MODELS = [
    (
        "input_shape 0",
        lambda g: network(inputs=(0,)),
        ValueError,
        r"input_shape .*at least 1.*\(0,\)",
    ),
    (
        "input_shape float",
        lambda g: network(inputs=2.5),
        TypeError,
        r"input_shape .*whole.*got 2.5",
    ),
    ("units 0", lambda g: Dense(0), ValueError, r"units must be at least 1, got 0"),
    ("units float", lambda g: Dense(2.5), TypeError, r"units must be a whole number, got 2.5"),
    ("activation", lambda g: Dense(2, "gelu"), ValueError, r"activation .*'relu', got 'gelu'"),
    ("loss", lambda g: network(loss="hinge"), ValueError, r"loss must be one of .*got 'hinge'"),
    ("loss a list", lambda g: network(loss=["squared"]), ValueError, r"loss .*got \['squared'\]"),
    (
        "no layers",
        lambda g: Network(input_shape=3, layers=[], loss="squared"),
        ValueError,
        r"layers must hold at least one layer, got none",
    ),
    (
        "one layer",
        lambda g: Network(input_shape=3, layers=Dense(3), loss="squared"),
        TypeError,
        r"layers must be a list of layers, got Dense",
    ),
    (
        "layers of numbers",
        lambda g: Network(input_shape=3, layers=[3], loss="squared"),
        TypeError,
        r"layers must hold layers such as dbdask.Dense, got 3",
    ),
    (
        "an activation twice",
        lambda g: Network(input_shape=3, layers=[Dense(3, "relu")], loss="softmax"),
        ValueError,
        r"last layer of a 'softmax' network must be linear.*got 'relu'",
    ),
    ("rate 0", lambda g: dbdask.sgd(0), ValueError, r"learning_rate must be above 0, got 0"),
    ("rate NaN", lambda g: dbdask.sgd(np.nan), ValueError, r"learning_rate .*above 0, got nan"),
    ("rate text", lambda g: dbdask.sgd("0.1"), TypeError, r"learning_rate .*number, got '0.1'"),
    (
        "decay",
        lambda g: dbdask.sgd(1, weight_decay=-1),
        ValueError,
        r"weight_decay .*least 0, got -1",
    ),
    (
        "momentum",
        lambda g: dbdask.momentum(1, momentum=1),
        ValueError,
        r"momentum .*below 1, got 1",
    ),
    ("nesterov", lambda g: dbdask.momentum(1, nesterov="no"), TypeError, r"nesterov .*got 'no'"),
    ("beta", lambda g: dbdask.adam(0.1, beta2=1.5), ValueError, r"beta2 must be below 1, got 1.5"),
    ("epsilon", lambda g: dbdask.adagrad(1, epsilon=0), ValueError, r"epsilon .*above 0, got 0"),
    ("a name with a slash", lambda g: dbdask.Parameter("a/b", (1,), ("x",)), ValueError, r"'a/b'"),
    (
        "a schedule below zero",
        lambda g: g.downpour(optimizer=dbdask.sgd(lambda step: -1.0)),
        ValueError,
        r"learning_rate\(0\) must be finite and at least 0, got -1.0",
    ),
    (
        "a schedule of text",
        lambda g: g.downpour(optimizer=dbdask.sgd(lambda step: "fast")),
        TypeError,
        r"learning_rate\(0\) must be a number, got 'fast'",
    ),
]

# What both algorithms refuse; each case is an option's name, its value, the error and the message

OPTIONS = [
    ("client", "tcp://127.0.0.1:9", TypeError, r"client must be .*Client, got 'tcp://127"),
    ("client", SimpleNamespace(asynchronous=True), TypeError, r"client must be synchronous"),
    ("replicas", 0, ValueError, r"replicas must be at least 1, got 0"),
    ("shards", 1.5, TypeError, r"shards must be a whole number, got 1.5"),
    ("shards", -1, ValueError, r"shards must be at least 1, got -1"),
    ("workers", [], ValueError, r"workers must name at least one worker, got none"),
    ("workers", 1.5, TypeError, r"workers must be a worker's name or address, .*got 1.5"),
    (
        "workers",
        ["nobody"],
        dbdask.WorkerError,
        r"workers=\['nobody'\] names no running.*there are",
    ),
    ("shard_workers", [], ValueError, r"shard_workers must name at least one worker, got none"),
    ("shard_workers", "nobody", dbdask.WorkerError, r"shard_workers=\['nobody'\] names no running"),
    ("validation", 3, TypeError, r"validation must be dbdask.Examples, got int"),
    ("validate_every", 5, ValueError, r"validate_every=5 needs validation="),
    ("keep", "all", ValueError, r"keep must be one of 'last', 'best', got 'all'"),
    ("keep", "best", ValueError, r'keep="best" needs validation='),
    ("checkpoint", 3, TypeError, r"checkpoint must be a path or a URL, got 3"),
    ("checkpoint", "", ValueError, r"checkpoint must be a path or a URL, got ''"),
    ("checkpoint", "zzz://a", dbdask.CheckpointError, r"'zzz://a' cannot be reached.*give a path"),
    ("snapshot_every", "soon", ValueError, r"snapshot_every must be a duration .*got 'soon'"),
    ("snapshot_every", 0, ValueError, r"snapshot_every must be a duration above 0, got 0"),
    ("resume", True, ValueError, r"resume=True needs checkpoint="),
    ("resume", "maybe", ValueError, r"resume must be one of False, True, 'auto', got 'maybe'"),
    ("resume", 1, ValueError, r"resume must be one of False, True, 'auto', got 1"),
    ("callbacks", print, TypeError, r"callbacks must be a list of callables, got .*print"),
    ("callbacks", [3], TypeError, r"callbacks must be callables, got 3"),
    ("progress", "yes", ValueError, r"progress must be one of None, True, False, got 'yes'"),
    ("seed", -1, ValueError, r"seed must be at least 0, got -1"),
    ("seed", None, TypeError, r"seed must be a whole number, got None"),
    ("parameters", 3, TypeError, r"parameters must be a Result .*got 3"),
    ("parameters", "model.zarr", TypeError, r"parameters must be .*dbdask.load.*'model.zarr'"),
    (
        "parameters",
        np.zeros(3),
        ValueError,
        r"parameters has shape \(3,\), the model needs \(21,\)",
    ),
    (
        "parameters",
        np.full(21, np.nan),
        ValueError,
        r"parameters must be finite, but 'dense_0_weig",
    ),
    ("parameters", np.zeros(21, complex), TypeError, r"parameters must hold real .*complex128"),
    ("parameters", xr.Dataset(), ValueError, r"parameters has no 'dense_0_weights', which the mod"),
]
DOWNPOUR_OPTIONS = [
    ("optimizer", "adam", TypeError, r"optimizer must be dbdask.sgd, .* got 'adam'"),
    ("optimizer", dbdask.adam, TypeError, r"optimizer must be dbdask.sgd, .* got <class .*Adam"),
    ("batch_size", 0, ValueError, r"batch_size must be at least 1, got 0"),
    ("batch_size", 2.0, TypeError, r"batch_size must be a whole number, got 2.0"),
    ("batch_size", True, TypeError, r"batch_size must be a whole number, got True"),
    ("epochs", "3", TypeError, r"epochs must be a whole number, got '3'"),
    ("n_fetch", 0, ValueError, r"n_fetch must be at least 1, got 0"),
    ("n_push", -1, ValueError, r"n_push must be at least 1, got -1"),
    ("warmstart", -1, ValueError, r"warmstart must be at least 0, got -1"),
    ("local_learning_rate", -0.1, ValueError, r"local_learning_rate must be above 0, got -0.1"),
    ("target_loss", "low", TypeError, r"target_loss must be a number, got 'low'"),
    ("target_loss", np.nan, ValueError, r"target_loss must be finite, got nan"),
    ("clip_norm", 0, ValueError, r"clip_norm must be above 0, got 0"),
    ("max_refused", 0, ValueError, r"max_refused must be at least 1, got 0"),
]
SANDBLASTER_OPTIONS = [
    ("iterations", 0, ValueError, r"iterations must be at least 1, got 0"),
    ("history_length", 1.5, TypeError, r"history_length must be a whole number, got 1.5"),
    ("tolerance", -1, ValueError, r"tolerance must be at least 0, got -1"),
    ("tolerance", np.nan, ValueError, r"tolerance must be finite, got nan"),
    ("l2", -1.0, ValueError, r"l2 must be at least 0, got -1.0"),
    ("l2", np.inf, ValueError, r"l2 must be finite, got inf"),
    ("portion_size", 0, ValueError, r"portion_size must be at least 1, got 0"),
]


def with_option(algorithm, name, value):
    return lambda g: getattr(g, algorithm)(**{name: value})


def spelt(value):
    """The start of a value's text, the same in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))[:30]


ALGORITHMS = [
    (f"{algorithm} {name}={spelt(value)}", with_option(algorithm, name, value), error, message)
    for algorithm, table in (
        ("downpour", OPTIONS + DOWNPOUR_OPTIONS),
        ("sandblaster", OPTIONS + SANDBLASTER_OPTIONS),
    )
    for name, value, error, message in table
]

# What model, examples and cluster must be for each other


def at_once(act):
    """Act where nobody waits for workers to come."""
    with dask.config.set({"dbdask.arrival": "1ms"}):
        return act()


FITTING = [
    ("no model", lambda g: dbdask.downpour(3, g.examples()), TypeError, r"model has no 'layout'"),
    ("a class", lambda g: g.downpour(Network), TypeError, r"the class Network: make one of it"),
    ("a Dataset", lambda g: g.downpour(examples=g.data), TypeError, r"examples .*, got Dataset"),
    ("a path", lambda g: g.sandblaster(examples=g.store), TypeError, r"examples .*, got str"),
    (
        "no targets",
        lambda g: g.downpour(examples=g.examples(targets=None)),
        ValueError,
        r"examples has no targets: give targets=",
    ),
    (
        "validation without targets",
        lambda g: g.downpour(validation=g.examples(targets=None)),
        ValueError,
        r"validation has no targets: give targets=",
    ),
    (
        "validation of another shape",
        lambda g: g.downpour(validation=g.examples(window={"row": 3})),
        ValueError,
        r"validation.input_shape is \(3, 6\), the model's input_shape is \(6,\)",
    ),
    (
        "inputs of another shape",
        lambda g: g.downpour(network(inputs=5)),
        ValueError,
        r"examples.input_shape is \(6,\), the model's input_shape is \(5,\): build it",
    ),
    (
        "fewer outputs than classes",
        lambda g: g.downpour(network(2), g.examples(classes=[0, 1, 2])),
        ValueError,
        r"examples has 3 classes, the model has 2 outputs: give the last layer one unit",
    ),
    (
        "more outputs than classes",
        lambda g: g.sandblaster(network(5), g.examples(classes=[0, 1, 2])),
        ValueError,
        r"examples has 3 classes, the model has 5 outputs",
    ),
    (
        "text without classes",
        lambda g: g.downpour(examples=g.examples(targets="word")),
        ValueError,
        r"classes: the labels of 'word' are text; give classes=.*find_classes",
    ),
    (
        "text for numbers",
        lambda g: g.downpour(network(1, loss="squared"), g.examples(targets="word")),
        TypeError,
        r"loss 'squared' takes numbers, the targets are text",
    ),
    (
        "vectors for labels",
        lambda g: g.downpour(examples=g.examples(targets="x")),
        ValueError,
        r"loss 'softmax' takes one label an example, examples.target_shape is \(6,\)",
    ),
    (
        "outputs that are not the targets'",
        lambda g: g.downpour(network(2, loss="squared"), g.examples(targets="x")),
        ValueError,
        r"examples.target_shape is \(6,\), the model has 2 outputs",
    ),
    (
        "a label outside",
        lambda g: g.downpour(network(2)),
        dbdask.DataError,
        r"targets: variable 'label' at row=\d+ .* is 2, which is not a whole number from 0 to 1",
    ),
    (
        "a label between",
        lambda g: g.sandblaster(examples=g.examples(g.changed("label", 7, 1.5))),
        dbdask.DataError,
        r"'label' at row=7 .* is 1.5, which is not a whole number from 0 to 2",
    ),
    (
        "odds outside 0 to 1",
        lambda g: g.downpour(network(6, loss="logistic"), g.examples(targets="x")),
        dbdask.DataError,
        r"targets of a 'logistic' loss must lie in 0 to 1 for every output, got",
    ),
    (
        "NaN in the inputs",
        lambda g: g.downpour(examples=g.examples(g.changed("x", (3, 2), np.nan))),
        dbdask.DataError,
        r"inputs: variable 'x' at row=3 .* is missing .*missing=\"drop\"",
    ),
    (
        "infinity in the inputs",
        lambda g: g.sandblaster(examples=g.examples(g.changed("x", (3, 2), np.inf))),
        dbdask.DataError,
        r"inputs: variable 'x' at row=3 .* is infinite",
    ),
    (
        "NaN in the targets",
        lambda g: g.downpour(
            network(1, loss="squared"), g.examples(g.changed("value", 3, np.nan), targets="value")
        ),
        dbdask.DataError,
        r"targets: variable 'value' at row=3 .* is missing",
    ),
    (
        "a negative weight",
        lambda g: g.downpour(examples=g.examples(g.changed("weight", 3, -1), weights="weight")),
        dbdask.DataError,
        r"weights: variable 'weight' at row=3 .* is negative; weights must be 0 or more",
    ),
    (
        "no weight at all",
        lambda g: g.downpour(
            examples=g.examples(g.changed("weight", slice(None), 0), weights="weight")
        ),
        dbdask.DataError,
        r"examples has no example with a weight above 0.*check\(\)",
    ),
    (
        "nothing that is not missing",
        lambda g: g.downpour(
            examples=g.examples(g.changed("x", slice(None), np.nan), missing="drop")
        ),
        dbdask.DataError,
        r"examples has no example .* that is not missing",
    ),
    (
        "nothing that is not missing, in a pass",
        lambda g: g.sandblaster(
            examples=g.examples(g.changed("x", slice(None), np.nan), missing="drop")
        ),
        dbdask.DataError,
        r"examples has no example .* that is not missing",
    ),
    (
        "nothing to validate on",
        lambda g: g.downpour(
            validation=g.examples(g.changed("x", slice(None), np.nan), missing="drop")
        ),
        dbdask.DataError,
        r"no example with a weight above 0",
    ),
    (
        "a group that returns",
        lambda g: g.downpour(
            examples=g.examples(
                g.with_values(utterance=np.arange(ROWS) // 20 % 2), groups="utterance"
            )
        ),
        dbdask.DataError,
        r"groups: 'utterance' is 0, then 1, then 0 again",
    ),
    (
        "a truncated chunk",
        lambda g: g.downpour(examples=g.examples(g.path("damaged.zarr"))),
        dbdask.DataError,
        r"'x' at \[30:60, 0:6\] of .*damaged.zarr cannot be read",
    ),
    (
        "a cluster without workers",
        lambda g: at_once(lambda: g.downpour(client=g.empty, checkpoint=g.path("new.zarr"))),
        dbdask.WorkerError,
        r"the cluster has no worker: start one",
    ),
    (
        "workers' names without workers",
        lambda g: at_once(lambda: g.sandblaster(client=g.empty, workers="a")),
        dbdask.WorkerError,
        r"the cluster has no worker: start one",
    ),
    (
        "a model larger than what is collected",
        lambda g: g.downpour(HUGE),
        ValueError,
        r"is larger than 1 GiB: give checkpoint=",
    ),
    (
        "a model larger than a worker",
        lambda g: g.downpour(HUGE, checkpoint=g.path("new.zarr")),
        ValueError,
        r"does not fit worker .*memory_limit is \d+ MiB: give workers more memory",
    ),
    (
        "a model larger than a worker, by passes",
        lambda g: g.sandblaster(HUGE, checkpoint=g.path("new.zarr")),
        ValueError,
        r"does not fit worker .*memory_limit",
    ),
    (
        "parameters of another model",
        lambda g: g.downpour(network(4), parameters=g.result),
        ValueError,
        r"parameters\['dense_0_weights'\] has shape \(3, 6\), the model needs \(4, 6\)",
    ),
]

# Checkpoints


def resumed(**options):
    return lambda g: g.downpour(checkpoint=g.checkpoint, resume=True, **options)


def resumed_passes(**options):
    return lambda g: g.sandblaster(checkpoint=g.batch_checkpoint, resume=True, **options)


CHECKPOINTS = [
    (
        "it exists",
        lambda g: g.downpour(checkpoint=g.checkpoint),
        r"exists already: go on from it with resume=True \(or resume=\"auto\"\), or delete it",
    ),
    (
        "it does not exist",
        lambda g: g.downpour(checkpoint=g.path("none.zarr"), resume=True),
        r"none.zarr' does not exist: resume=\"auto\" starts one",
    ),
    (
        "a dataset",
        lambda g: g.downpour(checkpoint=g.store),
        r"store.zarr' holds something, but no checkpoint of this version.*give another path",
    ),
    (
        "a dataset, resumed",
        lambda g: g.sandblaster(checkpoint=g.store, resume="auto"),
        r"store.zarr' holds something, but no checkpoint",
    ),
    (
        "a saved result",
        lambda g: g.downpour(checkpoint=g.saved, resume=True),
        r"model.zarr' holds something, but no checkpoint",
    ),
    ("a file", lambda g: g.downpour(checkpoint=g.path("file")), r"file' holds something, but no"),
    ("a folder", lambda g: g.downpour(checkpoint=g.path("folder")), r"folder' holds something"),
    ("below a file", lambda g: g.downpour(checkpoint=g.path("file/a")), r"cannot be written.*give"),
    (
        "another algorithm's",
        lambda g: g.sandblaster(checkpoint=g.checkpoint, resume=True),
        r"another algorithm wrote it \(algorithm is 'downpour' there and 'sandblaster' here\)",
    ),
    ("another model", resumed(model=network(4)), r"the model is another \(model 'layers' is"),
    (
        "another optimizer",
        resumed(optimizer=dbdask.adam(0.1)),
        r"optimizer is 'adagrad' there and 'adam' here",
    ),
    ("another batch size", resumed(batch_size=10), r"batch_size is 20 there and 10 here"),
    ("another seed", resumed(seed=5), r"seed is 0 there and 5 here\); use the same value"),
    (
        "other examples",
        lambda g: g.downpour(
            examples=g.examples().isel(row=slice(50)), checkpoint=g.checkpoint, resume="auto"
        ),
        r"the number of examples is another \(rows is 120 there and 50 here\)",
    ),
    ("another history", resumed_passes(history_length=3), r"history_length is 10 there and 3 here"),
    ("another objective", resumed_passes(l2=0.5), r"l2 is 0.0 there and 0.5 here"),
]

# Results

RESULTS = [
    ("predict a number", lambda g: g.result.predict(3), TypeError, r"data must be .*got int"),
    (
        "predict examples",
        lambda g: g.result.predict(g.examples()),
        TypeError,
        r"data .*got Examples",
    ),
    (
        "predict nowhere",
        lambda g: g.result.predict(g.path("no")),
        FileNotFoundError,
        r"no such path",
    ),
    (
        "predict without the inputs",
        lambda g: g.result.predict(g.data.drop_vars("x")),
        ValueError,
        r"inputs: no variable 'x' in the given Dataset; it has",
    ),
    (
        "predict other inputs",
        lambda g: g.result.predict(g.data.isel(feature=slice(3))),
        ValueError,
        r"inputs x have shape \(3,\) .*the model was trained on \(6,\)",
    ),
    (
        "predict other dimensions",
        lambda g: g.result.predict(g.data.rename(row="frame")),
        ValueError,
        r"along: no dimension 'row' in the given Dataset",
    ),
    (
        "predict infinity",
        lambda g: g.result.predict(g.changed("x", (3, 2), np.inf)).compute(scheduler="synchronous"),
        dbdask.DataError,
        r"inputs: variable 'x' at row=3 .* is infinite",
    ),
    (
        "evaluate a Dataset",
        lambda g: g.result.evaluate(g.data),
        TypeError,
        r"examples .*got Dataset",
    ),
    (
        "evaluate without targets",
        lambda g: g.result.evaluate(g.examples(targets=None)),
        ValueError,
        r"examples has no targets: evaluate needs targets",
    ),
    (
        "evaluate other inputs",
        lambda g: g.result.evaluate(g.examples(window={"row": 3})),
        ValueError,
        r"have the window \{'row': \[-1, 1\]\}, the training examples None; give the same window",
    ),
    (
        "evaluate other targets",
        lambda g: g.result.evaluate(g.examples(targets="x")),
        ValueError,
        r"variable 'x' has, beside the sample dimensions, 'feature', the training examples have no",
    ),
    (
        "evaluate a label outside",
        lambda g: g.result.evaluate(g.examples(g.changed("label", 3, 7))),
        dbdask.DataError,
        r"'label' at row=3 .* is 7.0, which is not a whole number from 0 to 2",
    ),
    (
        "evaluate nothing",
        lambda g: g.result.evaluate(
            g.examples(g.changed("x", slice(None), np.nan), missing="drop")
        ),
        dbdask.DataError,
        r"no example with a weight above 0",
    ),
    ("save to a number", lambda g: g.result.save(3), TypeError, r"path must be .*, got 3"),
    ("save to no path", lambda g: g.result.save(""), ValueError, r"path must be .*, got ''"),
    ("save twice", lambda g: g.result.save(g.saved), FileExistsError, r"exists .*overwrite=True"),
    (
        "save over data",
        lambda g: g.result.save(g.store, overwrite=True),
        FileExistsError,
        r"store.zarr' is no saved result, which is all that overwrite=True replaces",
    ),
    (
        "save over a checkpoint",
        lambda g: g.result.save(g.checkpoint, overwrite=True),
        FileExistsError,
        r"run.zarr' is no saved result",
    ),
    (
        "save over a folder",
        lambda g: g.result.save(g.path("folder"), overwrite=True),
        FileExistsError,
        r"folder' is no saved result",
    ),
    ("save below a file", lambda g: g.result.save(g.path("file/a")), OSError, r"cannot be written"),
    ("load a number", lambda g: dbdask.load(3), TypeError, r"path must be .*, got 3"),
    (
        "load nothing",
        lambda g: dbdask.load(g.path("no")),
        dbdask.ResultError,
        r"no' does not exist",
    ),
    (
        "load data",
        lambda g: dbdask.load(g.store),
        dbdask.ResultError,
        r"store.zarr' holds no saved",
    ),
    ("load a run", lambda g: dbdask.load(g.checkpoint), dbdask.ResultError, r"run.zarr' holds no"),
    (
        "load a number as model",
        lambda g: dbdask.load(g.saved, model=3),
        TypeError,
        r"model .*got 3",
    ),
    (
        "load as another model",
        lambda g: dbdask.load(g.saved, model=network(5)),
        dbdask.ResultError,
        r"model has another layout than the result saved at .*model.zarr",
    ),
]

CASES = [
    *EXAMPLES,
    *MODELS,
    *ALGORITHMS,
    *FITTING,
    *((name, act, dbdask.CheckpointError, message) for name, act, message in CHECKPOINTS),
    *RESULTS,
]


def wait_until_nothing_is_left(client):
    until = time.monotonic() + 120
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert_nothing_left(client)


@pytest.fixture(scope="module")
def kept(given):
    """What a refusal must leave as it was."""
    return {
        "run": checkpoint.latest(given.checkpoint),
        "batch": checkpoint.latest(given.batch_checkpoint),
        "vector": given.result.vector(),
        "data": xr.open_zarr(given.store, consolidated=False).load(),
    }


@pytest.mark.parametrize(
    ("act", "error", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input_is_refused_by_name_and_costs_nothing(given, kept, act, error, message):
    with pytest.raises(error, match=message) as caught:
        act(given)
    assert caught.type is error or error is OSError
    assert checkpoint.latest(given.checkpoint) == kept["run"]
    assert checkpoint.latest(given.batch_checkpoint) == kept["batch"]
    np.testing.assert_array_equal(dbdask.load(given.saved).vector(), kept["vector"])
    assert (given.folder / "file").read_text() == "mine"
    assert (given.folder / "folder" / "notes").read_text() == "mine"
    wait_until_nothing_is_left(given.client)


def test_after_all_refusals_the_same_calls_work(given, kept):
    """What was refused for its cluster is begun with the same words, and a kept run goes on."""
    xr.testing.assert_identical(xr.open_zarr(given.store, consolidated=False).load(), kept["data"])
    assert given.downpour(checkpoint=given.path("new.zarr")).status.ok
    again = given.downpour(checkpoint=given.checkpoint, resume=True, epochs=2)
    assert again.history["epoch"].values[-1] == 1


def test_inputs_may_be_the_targets(given):
    examples = given.examples(targets="x")
    assert given.downpour(network(6, loss="squared"), examples).status.ok


def test_numpys_numbers_are_numbers(given):
    options = {"batch_size": np.int64(20), "epochs": np.int32(1), "clip_norm": np.float32(1)}
    path = given.path("numpy.zarr")
    assert given.downpour(checkpoint=path, seed=np.int64(2), **options).status.ok
    assert given.downpour(checkpoint=path, seed=2, resume=True, batch_size=20).status.ok
