"""Tables as examples: columns of pandas and of dask.dataframe, and labels among the inputs."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_prediction import result_of

import dbdask
from dbdask.data.routes import HeldByPandas
from dbdask.errors import DataError

JOBS, TOWNS = ["baker", "cook", "smith"], ["Ayr", "Bath", "Cork", "Deal"]


def table(rows=60, seed=0):
    """Numbers, labels of several dtypes, and a rare class."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, rows)
    return pd.DataFrame(
        {
            "age": age,
            "income": rng.normal(3e4, 5e3, rows),
            "job": rng.choice(JOBS, rows),
            "town": pd.Categorical(rng.choice(TOWNS, rows), categories=TOWNS),
            "zone": rng.choice([3, 7, 20], rows),
            "weight": rng.random(rows).astype("f4"),
            "rich": (rng.random(rows) < 0.2).astype(int),
        },
        index=[f"id{n}" for n in range(rows)],
    )


def lazy(frame, partitions=4):
    dataframe = pytest.importorskip("dask.dataframe", reason="needs dask[dataframe]")
    return dataframe.from_pandas(frame, npartitions=partitions, sort=False)


CLUSTERS = ["threads_client", pytest.param("process_client", marks=pytest.mark.slow)]
GIVEN = {"pandas": lambda frame: frame, "dask": lazy}


def examples_of(frame, **more):
    arguments = {"targets": "rich", "weights": "weight", "categories": {"town": "codes"}}
    return dbdask.Examples.from_dataframe(frame, **(arguments | more))


def by_hand(frame, labels):
    """Inputs of a table: numbers, one-hot jobs, codes of towns and the zone, by `labels`."""
    one_hot = np.array([[job == one for one in labels["job"]] for job in frame["job"]])
    towns = [
        labels["town"].index(town) + 1 if town in labels["town"] else 0 for town in frame["town"]
    ]
    columns = [frame["age"], frame["income"], *one_hot.T, towns, frame["zone"]]
    return np.stack([np.asarray(column, "f4") for column in columns], 1)


@pytest.mark.parametrize("kind", GIVEN)
def test_columns_are_inputs_in_their_order(kind):
    frame = table()
    examples = examples_of(GIVEN[kind](frame)).fit_categories()
    assert examples.categories == {"job": JOBS, "town": TOWNS}
    assert examples.input_shape == (7,) and examples.target_shape == ()
    inputs, targets, weights = examples.batch(len(frame))
    assert np.array_equal(inputs, by_hand(frame, examples.categories))
    assert np.array_equal(targets, frame["rich"]) and np.array_equal(weights, frame["weight"])


@pytest.mark.parametrize("kind", GIVEN)
def test_labels_are_those_of_the_training_part(kind):
    frame = table(40)
    frame.loc[frame.index[:30], "job"] = np.resize(["cook", "smith"], 30)
    frame.loc[frame.index[30:], "job"] = "baker"
    frame["town"] = ["Cork"] * 30 + ["Deal"] * 10
    train, held_out = examples_of(GIVEN[kind](frame)).split(0.75)
    train = train.standardize(variables=["age"])
    assert train.categories == {"job": ["cook", "smith"], "town": ["Cork"]}
    assert train.input_shape == (6,)
    with pytest.raises(ValueError, match="labels of 'job' are not known yet; call train.fit_cat"):
        _ = held_out.input_shape
    inputs = held_out.prepared_like(train).batch(10).inputs
    assert (inputs[:, 2:5] == 0).all() and np.array_equal(inputs[:, 5], frame["zone"][30:])


@pytest.mark.parametrize("kind", GIVEN)
def test_a_result_carries_labels_and_scaling(kind, tmp_path):
    frame = table()
    train, held_out = examples_of(GIVEN[kind](frame), categories="one-hot").split(0.5, seed=1)
    train = train.standardize()
    model = dbdask.Network(input_shape=train.input_shape, layers=[dbdask.Dense(2)], loss="softmax")
    result = result_of(train, model)
    result.save(tmp_path / "model.zarr")
    loaded = dbdask.load(tmp_path / "model.zarr")
    assert loaded.examples.categories == train.categories
    other = table(30, seed=5)
    other.loc["id3", "job"] = "pilot"
    wanted = result.predict(other).compute()
    assert wanted.dims == ("row",) and wanted["row"].values.tolist() == list(other.index)
    found = loaded.predict(GIVEN[kind](other)).compute()
    assert np.array_equal(found, wanted)
    scores = result.evaluate(held_out)
    assert scores == loaded.evaluate(held_out) and 0 <= scores["accuracy"] <= 1


def test_standardizing_scales_numbers_only():
    examples = examples_of(table()).standardize()
    inputs = examples.batch(60).inputs
    np.testing.assert_allclose(inputs[:, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, 6].std(), 1, atol=1e-5)
    assert set(np.unique(inputs[:, 2:5])) == {0, 1} and inputs[:, 5].max() == len(TOWNS)
    with pytest.raises(ValueError, match="variables: 'job' is a category, which is not scaled"):
        examples.standardize(variables=["job"])


def test_numbers_that_are_named_are_labels():
    frame = table()
    examples = examples_of(frame, inputs=["zone", "age"], categories={"zone": "one-hot"})
    examples = examples.fit_categories()
    assert examples.categories == {"zone": [3, 7, 20]}
    inputs = examples.batch(60).inputs
    assert np.array_equal(inputs[:, :3], frame["zone"].to_numpy()[:, None] == [3, 7, 20])


def test_codes_alone_are_stacked():
    frame = table()
    examples = examples_of(frame, inputs=["job", "town"], categories="codes").fit_categories()
    assert examples.input_shape == (2,)
    places = [
        [JOBS.index(job) + 1, TOWNS.index(town) + 1]
        for job, town in zip(frame["job"], frame["town"], strict=True)
    ]
    assert examples.batch(60).inputs.tolist() == places


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("missing", ["drop", "mask", "error"])
def test_a_missing_label_follows_the_rule(kind, missing):
    frame = table()
    frame.loc[["id2", "id5"], "job"] = None
    frame.loc["id7", "town"] = None
    frame.loc["id9", "age"] = None
    gaps = frame[["job", "town", "age"]].isna().any(axis=1).to_numpy()
    examples = examples_of(GIVEN[kind](frame), missing=missing).fit_categories()
    assert examples.categories == {"job": JOBS, "town": TOWNS}
    if missing == "error":
        with pytest.raises(DataError, match="inputs: variable '(age|job|town)' at row="):
            examples.batch(60)
        return
    inputs = examples.batch(60).inputs
    wanted = by_hand(
        frame.assign(age=frame["age"].fillna(frame["age"].mean())), examples.categories
    )
    np.testing.assert_allclose(inputs, wanted[~gaps] if missing == "drop" else wanted, rtol=1e-6)


def test_a_column_of_nullable_numbers_keeps_its_gaps():
    frame = table().assign(age=pd.array([30, None, *range(58)], "Int64"))
    examples = examples_of(frame, missing="drop").fit_categories()
    assert len(examples.batch(60).inputs) == 59


def test_a_target_of_categories_declares_its_classes():
    frame = table()
    examples = dbdask.Examples.from_dataframe(frame, inputs="age", targets="town")
    assert examples.output_classes == TOWNS
    targets = examples.batch(60).targets
    assert [TOWNS[target] for target in targets] == frame["town"].tolist()


def test_windows_over_rows_see_labels_as_they_see_numbers():
    frame = table()
    inputs = {"job": {"row": (-1, 0)}, "age": None}
    examples = examples_of(frame, inputs=inputs, categories="one-hot").fit_categories()
    assert examples.input_shape == (7,)
    row = examples.batch(10).inputs[4]
    hot = [[job == one for one in JOBS] for job in frame["job"].iloc[3:5]]
    assert row.tolist() == [*np.ravel(hot), frame["age"].iloc[4]]


@pytest.mark.parametrize("client", [None, "threads_client"])
def test_labels_are_found_anywhere_and_travel_small(tmp_path, client, request):
    client = client and request.getfixturevalue(client)
    rng = np.random.default_rng(0)
    jobs = rng.choice(JOBS, 5000).astype(object)
    mask = xr.DataArray(jobs != "smith", dims="t")
    data = xr.Dataset({"job": ("t", jobs), "x": ("t", np.ones(5000)), "y": ("t", np.ones(5000))})
    arguments = {"targets": "y", "along": "t", "categories": {"job": "one-hot"}}
    for given in (data, data.chunk(t=600)):
        examples = dbdask.Examples(given, inputs=["job", "x"], **arguments)
        assert "labels not known" in repr(examples)
        train = examples.where(mask).fit_categories(client)
        assert train.categories == {"job": ["baker", "cook"]}
        assert len(pickle.dumps(train.worker_side())) < 10_000
        described = json.loads(json.dumps(train.description()))
        again = dbdask.Examples.from_description(described, given)
        assert np.array_equal(again.batch(90).inputs[:, 1], jobs[:90] == "cook")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_table_trains_with_parts_that_know_no_labels_yet(request, cluster):
    client = request.getfixturevalue(cluster)
    frame = table(400)
    train, held_out = examples_of(frame).split(0.8, seed=0)
    model = dbdask.Network(
        input_shape=train.standardize().input_shape, layers=[dbdask.Dense(2)], loss="softmax"
    )
    with pytest.raises(ValueError, match="labels of 'job' are not known yet"):
        dbdask.downpour(model, train, client=client, progress=False)
    result = dbdask.downpour(
        model,
        train.standardize(client=client),
        client=client,
        validation=held_out,
        batch_size=32,
        progress=False,
    )
    assert np.isfinite(result.history["validation_loss"].values[-1])
    assert result.predict(frame).sizes == {"row": 400}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"categories": "hot"}, ValueError, r"categories\['job'\] must be 'one-hot' or 'codes'"),
        ({"categories": {"jobs": "codes"}}, ValueError, "'jobs' is not one of the inputs age"),
        ({"inputs": ["ages"]}, ValueError, "no column 'ages' in the DataFrame; it has: age"),
        ({"targets": "poor"}, ValueError, "no column 'poor' in the DataFrame"),
        ({"targets": 3}, TypeError, "targets must be names of columns, got 3"),
        ({"inputs": [3]}, TypeError, "inputs must be names of columns, got 3"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        examples_of(table(), **arguments)


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (table().rename(columns={"age": 7}), TypeError, "a column 7, and names must be text"),
        (table().rename(columns={"age": "job"}), ValueError, "two columns 'job'"),
        (table().rename(columns={"age": "row"}), ValueError, "a column 'row', which is the name"),
        (table(0), ValueError, "the DataFrame has no rows"),
        ([1, 2], TypeError, "frame must be a DataFrame of pandas or dask.dataframe, got list"),
    ],
)
def test_a_wrong_table_is_named(frame, error, words):
    with pytest.raises(error, match=words):
        examples_of(frame)


def test_dates_are_no_labels():
    frame = table().assign(born=pd.Timestamp("2001-01-01"))
    with pytest.raises(TypeError, match=r"'born' has dtype datetime64.*labels are numbers or text"):
        examples_of(frame, categories={"born": "codes"})


def test_labels_of_another_kind_are_refused():
    frame = table()
    train = examples_of(frame, inputs=["zone"], categories={"zone": "codes"}).fit_categories()
    model = dbdask.Network(input_shape=(), layers=[dbdask.Dense(2)], loss="softmax")
    other = frame.assign(zone=frame["zone"].astype(str).astype("U2"))
    with pytest.raises(TypeError, match="labels of 'zone' were like 3 in training"):
        result_of(train, model).predict(xr.Dataset({"zone": ("row", other["zone"].to_numpy("U2"))}))


def test_too_many_labels_are_refused(monkeypatch):
    monkeypatch.setattr("dbdask.data.label_finding.MOST_LABELS", {"one-hot": 2, "codes": 9})
    with pytest.raises(DataError, match="'job' has more than 2 different labels; leave it out"):
        examples_of(table()).fit_categories()


def test_partitions_without_rows_are_skipped():
    frame = table()
    frame["age"] = frame["age"].astype("Int64")
    whole = lazy(frame, 6)
    examples = examples_of(whole[whole["zone"] == 7], categories="one-hot").fit_categories()
    kept = frame[frame["zone"] == 7]
    assert len(examples) == len(kept) and np.array_equal(
        examples.batch(60).inputs[:, 0], kept["age"]
    )
    with pytest.raises(ValueError, match="the DataFrame has no rows"):
        examples_of(whole[whole["zone"] == 8])


def test_integers_that_are_rounded_are_refused():
    frame = table().assign(age=pd.array([2**60 + 1] * 60, "Int64"))
    examples = examples_of(lazy(frame), inputs="age", categories="one-hot")
    with pytest.raises(DataError, match="column 'age' holds integers that float64 cannot hold"):
        examples.batch()


def test_columns_of_one_layout_share_their_places(monkeypatch):
    """A table of many columns costs one index a minibatch, not one for each column."""
    from dbdask.data.gathering import BlockGroup

    asked = []
    index = BlockGroup.index
    monkeypatch.setattr(
        BlockGroup, "index", lambda self, *given: asked.append(1) or index(self, *given)
    )
    frame = pd.DataFrame({f"x{n}": np.arange(50.0) + n for n in range(30)} | {"y": np.arange(50.0)})
    examples = dbdask.Examples.from_dataframe(frame, targets="y")
    inputs = examples.batch(50).inputs
    assert np.array_equal(inputs, np.arange(50)[:, None] + np.arange(30)[None])
    assert len(asked) < 40


def test_text_of_arrow_in_a_dataset_is_read():
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    text = pd.array(["cook", "baker", None, "cook"], "string[pyarrow]")
    data = xr.Dataset({"job": ("row", text), "y": ("row", np.arange(4.0))})
    arguments = {"inputs": "job", "targets": "y", "along": "row", "missing": "drop"}
    examples = dbdask.Examples(data, categories={"job": "codes"}, **arguments).fit_categories()
    assert examples.batch().inputs.tolist() == [2, 1, 2]


def test_text_of_many_rows_is_not_made_before_it_is_read(monkeypatch):
    read = []
    of_index = HeldByPandas.read
    monkeypatch.setattr(
        HeldByPandas, "read", lambda self, index: read.append(index) or of_index(self, index)
    )
    frame = pd.DataFrame({"job": pd.Categorical(np.resize(JOBS, 3000)), "y": np.ones(3000)})
    examples = examples_of(frame, targets="y", weights=None, categories="one-hot")
    assert not read and examples.has_labels is False
    examples.fit_categories()
    assert len(read) == 1
