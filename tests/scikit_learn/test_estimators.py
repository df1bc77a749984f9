"""Estimators on every container, and in what scikit-learn builds around them."""

import pickle

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("sklearn.utils.validation", reason="needs scikit-learn: dbdask[sklearn]")

from distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dbdask
from dbdask.sklearn import (
    DownpourClassifier,
    DownpourRegressor,
    SandblasterClassifier,
)

QUICK = {"epochs": 4, "batch_size": 16, "optimizer": dbdask.adam(0.05), "random_state": 0}
SEEN = []
ROWS, FEATURES = 240, 3
KINDS = ["numpy", "dask array", "pandas", "dask dataframe", "DataArray", "Dataset"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def table(rng):
    """Two classes apart along a line, on features of unlike units."""
    X = rng.normal(size=(ROWS, FEATURES))
    y = np.where(X[:, 0] + X[:, 1] > 0, "wet", "dry")
    return X * [1, 10, 0.1] + [0, 280, 0], y


def held_in(kind, X, y):
    """The same data in another container."""
    if kind == "numpy":
        return X, y
    if kind == "dask array":
        return da.from_array(X, chunks=(-1, 2)), da.from_array(y, chunks=70)
    columns = list("abc")
    if kind == "pandas":
        return pd.DataFrame(X, columns=columns), pd.Series(y)
    if kind == "dask dataframe":
        dd = pytest.importorskip("dask.dataframe", reason="needs dask[dataframe]")
        frame = pd.DataFrame(X, columns=columns)
        return dd.from_pandas(frame, npartitions=1), dd.from_pandas(pd.Series(y), npartitions=3)
    days = pd.date_range("2000-01-01", periods=len(X))
    rows = xr.DataArray(X, dims=("time", "name"), coords={"time": days, "name": columns})
    labels = xr.DataArray(y, dims="time", coords={"time": days})
    if kind == "DataArray":
        return rows.chunk(time=-1), labels
    return rows.to_dataset("name"), labels


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_the_same_classifier(kind, table):
    X, y = table
    model = DownpourClassifier(4, **QUICK).fit(X, y)
    given, labels = held_in(kind, X, y)
    other = DownpourClassifier(4, **QUICK).fit(given, labels)
    np.testing.assert_array_equal(other.classes_, ["dry", "wet"])
    probability = other.predict_proba(given)
    np.testing.assert_array_equal(np.asarray(probability), model.predict_proba(X))
    np.testing.assert_array_equal(
        np.asarray(other.predict(given)), other.classes_[np.asarray(probability).argmax(axis=1)]
    )
    assert other.n_features_in_ == FEATURES
    assert other.score(given, labels) == model.score(X, y) > 0.9


@pytest.mark.parametrize("kind", ["numpy", "dask array", "pandas", "DataArray", "Dataset"])
def test_predictions_are_of_the_kind_that_was_given(kind, table):
    X, y = table
    given, labels = held_in(kind, X, y)
    model = DownpourClassifier(4, **QUICK).fit(given, labels)
    predicted, probability = model.predict(given), model.predict_proba(given)
    if kind in ("numpy", "pandas"):
        assert type(predicted) is type(probability) is np.ndarray
    elif kind == "dask array":
        assert isinstance(predicted, da.Array) and isinstance(probability, da.Array)
        assert predicted.dtype == y.dtype and predicted.compute().dtype == y.dtype
    else:
        assert isinstance(predicted.data, da.Array)
        xr.align(predicted, labels, join="exact")
        assert probability.dims == ("time", "class")
        np.testing.assert_array_equal(probability["class"], model.classes_)


def test_features_have_names_where_the_data_have_them(table):
    X, y = table
    for kind in ("pandas", "DataArray", "Dataset"):
        given, labels = held_in(kind, X, y)
        model = DownpourClassifier(4, **QUICK).fit(given, labels)
        np.testing.assert_array_equal(model.feature_names_in_, list("abc"))
    frame, labels = held_in("pandas", X, y)
    model.fit(frame, labels)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c"]])
    model.fit(X, y)
    with pytest.raises(ValueError, match="has 2 features, but .* is expecting 3"):
        model.predict(da.from_array(X[:, :2]))


def test_a_regressor_predicts_in_the_units_of_y(rng):
    X = rng.normal(size=(400, 2))
    y = np.stack([1000 + 50 * X[:, 0], X[:, 1] ** 2], axis=1)
    model = DownpourRegressor(32, epochs=15, optimizer=dbdask.adam(0.02), random_state=0).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.predict(X).dtype == np.float64 and model.predict(X).shape == (400, 2)
    rows = xr.DataArray(X, dims=("point", "name"))
    assert model.predict(rows).dims == ("point", "output")
    lazy = model.predict(da.from_array(X, chunks=(90, -1)))
    # float32 sums: BLAS adds in an order that depends on how many rows there are.
    np.testing.assert_allclose(lazy.compute(), model.predict(X), rtol=1e-5, atol=1e-5)


def test_sandblaster_finds_the_optimum_of_a_convex_model(table):
    X, y = table
    model = SandblasterClassifier((), l2=0.01, iterations=25, random_state=0).fit(X, y)
    # A softmax of two outputs shares the penalty between them.
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=2 / (0.01 * ROWS)))
    expected = reference.fit(X, y).predict_proba(X)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=5e-3)
    assert model.n_iter_ == len(model.loss_curve_)
    assert model.loss_ == model.loss_curve_[-1] < model.loss_curve_[0]


def test_one_replica_repeats_to_the_bit(table):
    """Each of these epochs has four portions, whose order counts."""
    small = {**QUICK, "batch_size": 4}
    vectors = [DownpourClassifier(4, **small).fit(*table).result_.vector() for _ in range(4)]
    for vector in vectors[1:]:
        np.testing.assert_array_equal(vector, vectors[0])
    other = DownpourClassifier(4, **{**small, "random_state": 1}).fit(*table)
    assert (other.result_.vector() != vectors[0]).any()
    generator = np.random.RandomState(0)
    drawn = DownpourClassifier(4, **{**small, "random_state": generator}).fit(*table)
    assert (drawn.result_.vector() != vectors[0]).any()


def test_the_estimator_is_the_algorithm(table):
    X, y = table
    model = DownpourClassifier(4, **QUICK).fit(X, y)
    data = xr.Dataset({"x": (("n", "f"), X), "y": ("n", np.searchsorted(["dry", "wet"], y))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="n", classes=[0, 1])
    network = dbdask.Network(
        input_shape=3, layers=[dbdask.Dense(4, "relu"), dbdask.Dense(2)], loss="softmax"
    )
    with (
        LocalCluster(1, processes=False, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = dbdask.downpour(
            network,
            examples.standardize(per="feature", client=client),
            client=client,
            optimizer=QUICK["optimizer"],
            epochs=4,
            batch_size=16,
            seed=0,
            progress=False,
        )
    np.testing.assert_array_equal(result.vector(), model.result_.vector())


def test_partial_fit_goes_on(table):
    X, y = table
    model = DownpourClassifier(4, **QUICK)
    with pytest.raises(ValueError, match="classes must be given"):
        model.partial_fit(X[:100], y[:100])
    model.partial_fit(X[:100], y[:100], classes=["wet", "dry"])
    scaling = model.result_.examples.recipe.inputs.scalings
    before = model.result_.vector().copy()
    model.partial_fit(X[100:], y[100:])
    assert model.n_iter_ == len(model.loss_curve_) == 2
    assert model.result_.examples.recipe.inputs.scalings == scaling
    assert (model.result_.vector() != before).any()
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(X, y, classes=["wet", "dry", "icy"])
    with pytest.raises(ValueError, match="'icy'"):
        model.partial_fit(X[:2], ["wet", "icy"])
    with pytest.raises(ValueError, match="needs all data"):
        DownpourClassifier(class_weight="balanced").partial_fit(X, y, classes=["wet", "dry"])
    regressor = DownpourRegressor(4, **QUICK).partial_fit(X, X[:, 0])
    assert regressor.partial_fit(X, X[:, 0]).n_iter_ == 2


@pytest.mark.parametrize("kind", ["numpy", "dask array"])
def test_weights_of_classes_and_samples(kind, rng):
    X = rng.normal(size=(400, 1))
    y = (rng.random(400) < 0.1).astype(int)  # X says nothing of it
    given, labels = held_in(kind, X, y)

    def rare(**options):
        weight = options.pop("sample_weight", None)
        model = SandblasterClassifier((), iterations=8, random_state=0, **options)
        return float(np.asarray(model.fit(given, labels, weight).predict_proba(given))[:, 1].mean())

    assert rare(class_weight="balanced") == pytest.approx(0.5, abs=0.01)
    odds = 3 * y.mean() / (1 - y.mean())
    weight_of = {1: 2, 0: 1}
    weight = np.where(y == 1, 1.5, 1.0)
    weight = weight if kind == "numpy" else da.from_array(weight, chunks=100)
    assert rare(class_weight=weight_of, sample_weight=weight) == pytest.approx(
        odds / (1 + odds), abs=0.01
    )


def seen_block(values):
    if len(values):  # else Dask only asks for the dtype
        SEEN.append(len(values))
    return values


def test_lazy_data_stay_lazy(table):
    """Data that Dask computes reach the workers as portions, and predictions as blocks."""
    X, y = table
    SEEN.clear()
    lazy = da.from_array(X, chunks=(60, -1)).map_blocks(seen_block, dtype=X.dtype)
    model = DownpourClassifier(4, **QUICK).fit(lazy, y)
    predicted = model.predict(lazy)
    assert max(SEEN) == 60
    SEEN.clear()
    predicted[:10].compute()
    assert SEEN == [60]


def test_a_model_of_ones_own(table):
    X, y = table

    def model(input_shape, outputs):
        layers = [dbdask.Dense(5, "tanh"), dbdask.Dense(outputs)]
        return dbdask.Network(input_shape=input_shape, layers=layers, loss="softmax")

    for given in (model, model((3,), 2)):
        found = DownpourClassifier(model=given, **QUICK).fit(X, y)
        assert found.result_.model.layers[0] == dbdask.Dense(5, "tanh")


def test_images_keep_their_shape(rng):
    X = xr.DataArray(rng.normal(size=(60, 6, 6, 1)), dims=("n", "row", "column", "channel"))
    y = rng.integers(2, size=60)

    def model(input_shape, outputs):
        layers = [dbdask.LocallyConnected(2, 3), dbdask.Dense(outputs)]
        return dbdask.Network(input_shape=input_shape, layers=layers, loss="softmax")

    found = DownpourClassifier(model=model, **QUICK).fit(X, y)
    assert found.n_features_in_ == 36 and found.predict(X).dims == ("n",)


def test_training_starts_from_another_result(table):
    first = DownpourClassifier(4, **QUICK).fit(*table)
    second = SandblasterClassifier(4, iterations=3, parameters=first.result_, random_state=0)
    second.fit(*table)
    assert (
        second.loss_curve_[0]
        <= first.loss_ + 0.05
        < DownpourClassifier(4, **{**QUICK, "epochs": 1}).fit(*table).loss_ + 0.05
    )
    assert clone(second).parameters is first.result_


def test_a_clone_shares_client_and_callbacks(table, threads_client):
    seen = []

    class Watching:
        def __call__(self, record):
            seen.append(record.loss)

    callback = Watching()
    model = DownpourClassifier(4, client=threads_client, callbacks=[callback], **QUICK)
    copied = clone(model)
    assert copied.client is threads_client and copied.callbacks[0] is callback
    assert copied.optimizer == model.optimizer
    copied.fit(*table)
    assert len(seen) >= 4


def test_a_pickle_carries_neither_client_nor_data(table, threads_client):
    X, y = table
    model = DownpourClassifier(4, client=threads_client, epochs=1, batch_size=8192)
    model.fit(np.tile(X, (2000, 1)), np.tile(y, 2000))
    pickled = pickle.dumps(model)
    assert len(pickled) < 100_000
    again = pickle.loads(pickled)
    assert again.client is None and model.client is threads_client
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_in_a_pipeline_and_a_search(table):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), DownpourClassifier(4, standardize=False, **QUICK))
    search = GridSearchCV(
        pipeline, {"downpourclassifier__optimizer": [dbdask.adam(1e-6), dbdask.adam(0.1)]}, cv=2
    )
    search.fit(X, y)
    assert search.best_params_["downpourclassifier__optimizer"] == dbdask.adam(0.1)
    assert search.score(X, y) > 0.9
    lazy = da.from_array(X, chunks=(80, -1))
    assert cross_val_score(DownpourClassifier(4, **QUICK), lazy, y, cv=2).min() > 0.8


def test_the_current_client_trains(table, threads_client):
    with threads_client.as_current():
        names = []
        model = DownpourClassifier(
            4, callbacks=[lambda record: names.append(record.replicas)], **QUICK
        )
        model.fit(*table)
    assert set(names) == {2}  # one for each worker of that client


def test_what_is_wrong_is_named(table):
    X, y = table
    with pytest.raises(NotFittedError):
        DownpourClassifier().predict(X)
    with pytest.raises(ValueError, match="two classes, got one class"):
        DownpourClassifier().fit(X, np.zeros(ROWS))
    with pytest.raises(ValueError, match="hidden_layer_sizes must be at least 1, got 0"):
        DownpourClassifier((4, 0)).fit(X, y)
    with pytest.raises(ValueError, match=r"one length, got 240 and 239"):
        DownpourClassifier().fit(da.from_array(X), y[1:])
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        rows = da.from_array(X, chunks=(50, -1))
        DownpourClassifier().fit(rows[rows[:, 0] > 0], y)
    with pytest.raises(ValueError, match="class_weight must be"):
        DownpourClassifier(class_weight="even").fit(X, y)
    with pytest.raises(ValueError, match="must be of the kind that fit was given"):
        DownpourClassifier(4, **QUICK).fit(X, y).predict(held_in("Dataset", X, y)[0])
    with pytest.raises(ValueError, match="partial_fit keeps no checkpoint"):
        DownpourClassifier(checkpoint="run.zarr").partial_fit(X, y, classes=["dry", "wet"])
    with pytest.raises(TypeError, match="X must be an array, a dataframe, or of xarray"):
        DownpourClassifier().fit(da.from_array(X).to_delayed()[0, 0], y)
    rows, labels = held_in("DataArray", X, y)
    with pytest.raises(ValueError, match="other labels along 'time'"):
        DownpourClassifier().fit(rows, labels.assign_coords(time=np.arange(ROWS)))
    with pytest.raises(dbdask.DataError, match="missing"):
        DownpourClassifier(**QUICK).fit(da.where(da.from_array(X) > 280, np.nan, X), y)


def test_a_checkpoint_is_gone_on_from(table, tmp_path):
    path = str(tmp_path / "run.zarr")
    first = DownpourClassifier(4, checkpoint=path, **QUICK).fit(*table)
    longer = {**QUICK, "epochs": 6, "resume": True, "checkpoint": path}
    second = DownpourClassifier(4, **longer).fit(*table)
    assert second.n_iter_ == 6 and second.loss_curve_[:4] == first.loss_curve_


def test_what_is_opened_lazily_is_not_loaded(table, tmp_path):
    X, y = table
    data = xr.Dataset({"X": (("n", "f"), X), "extra": ("n", X[:, 0]), "y": ("n", y == "wet")})
    data.to_zarr(tmp_path / "table.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "table.zarr", chunks=None, consolidated=False)
    for given in (opened["X"], opened[["X", "extra"]]):
        model = DownpourClassifier(4, **QUICK).fit(given, opened["y"])
        assert model.score(given, opened["y"]) > 0.9
    assert model.n_features_in_ == FEATURES + 1
    assert not opened["X"].variable._in_memory and not opened["extra"].variable._in_memory
