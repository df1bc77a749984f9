"""What data promise: URLs of files, splits that say why, and no gap that is averaged away."""

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask import DataError, Dense, Examples, Network
from dbdask.data.locations import locate
from dbdask.storage.sealed import local_path

ROWS = 60


def make_data():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(ROWS, 3)).astype(np.float32)
    label = np.arange(ROWS) % 2
    return xr.Dataset({"x": (("row", "p"), inputs), "label": ("row", label)}).chunk(row=20)


def with_gap(name, row):
    """Return the data, as floats, with one value missing."""
    data = make_data().load().astype(np.float32)
    data[name].values[row] = np.nan
    return data.chunk(row=20)


def described(data, **options):
    return Examples(data, **{"inputs": "x", "targets": "label", "along": "row"} | options)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("file:///a/run%201.zarr", "/a/run 1.zarr"),
        ("file://localhost/a/b#c", "/a/b#c"),
        ("FILE:///a", "/a"),
        ("local:///a", "/a"),
    ],
)
def test_urls_of_files_name_one_path_everywhere(place, path):
    assert local_path(place) == path == locate(place).path


def test_a_path_is_taken_as_it_is_and_other_urls_name_none():
    assert local_path("/a/run%201.zarr") == "/a/run%201.zarr"
    assert local_path("s3://a/b") is None


def test_files_at_urls_with_escapes_are_written_and_read(threads_client, tmp_path):
    folder = tmp_path / "my runs"
    url = folder.as_uri()
    assert "%20" in url
    model = Network(input_shape=3, layers=[Dense(2)], loss="softmax")
    settings = {"client": threads_client, "batch_size": 20, "progress": False}
    examples = described(make_data())
    first = dbdask.downpour(model, examples, checkpoint=f"{url}/run.zarr", **settings)
    again = dbdask.downpour(model, examples, checkpoint=f"{url}/run.zarr", resume=True, **settings)
    again.save(f"{url}/model.zarr")
    with pytest.raises(FileExistsError, match="exists already"):
        first.save(f"{url}/model.zarr")
    assert sorted(found.name for found in folder.iterdir()) == ["model.zarr", "run.zarr"]
    for place in (f"{url}/model.zarr", folder / "model.zarr"):
        found = dbdask.load(place)
        np.testing.assert_array_equal(found.predict(make_data()), first.predict(make_data()))


@pytest.mark.parametrize("name", ["x", "label"])
@pytest.mark.parametrize("per", ["variable", "feature"])
def test_standardize_refuses_what_is_missing(name, per):
    role = "inputs" if name == "x" else "targets"
    with pytest.raises(DataError, match=rf"{role}: variable '{name}' at row=33.* is missing.*drop"):
        described(with_gap(name, 33)).standardize(per=per)


def test_standardize_refuses_what_is_missing_on_a_cluster(threads_client):
    with pytest.raises(DataError, match=r"inputs: variable 'x' at row=33.* is missing"):
        described(with_gap("x", 33)).standardize(client=threads_client)


@pytest.mark.parametrize("missing", ["drop", "mask"])
def test_standardize_measures_what_is_there(missing):
    data = with_gap("x", 33)
    found = described(data, missing=missing).standardize().recipe.inputs.scalings[0]
    assert found.mean == pytest.approx((float(data.x.astype("f8").mean()),))


def test_standardize_leaves_alone_what_no_example_uses():
    last = with_gap("x", ROWS - 1)
    described(last).isel(row=slice(0, ROWS - 1)).standardize()
    described(last).where(xr.DataArray(np.arange(ROWS) < ROWS - 1, dims="row")).standardize()
    described(last, window={"row": (-2, -1)}, edges="drop").standardize()
    described(with_gap("label", 0), window={"row": (-2, -1)}, edges="drop").standardize()
    described(with_gap("label", 33)).standardize(targets=False)


@pytest.mark.parametrize("value", ["yes", 1, 0, [True]])
def test_standardize_takes_true_false_or_none_for_targets(value):
    with pytest.raises(TypeError, match="targets must be True, False or None, got"):
        described(make_data()).standardize(targets=value)


def test_a_group_that_returns_in_a_later_chunk_is_not_split():
    group = np.arange(ROWS) // 10 % 5
    examples = described(make_data().assign(group=("row", group)), groups="group")
    with pytest.raises(DataError, match="groups: 'group' is 0, then .*, then 0 again"):
        examples.split(0.5, seed=0)


@pytest.mark.parametrize("seed", [None, 1])
def test_a_part_without_examples_is_named(seed):
    few = described(make_data()).where(xr.DataArray(np.arange(ROWS) < 1, dims="row"))
    with pytest.raises(ValueError, match=r"split: no examples .*row in the part of 0\.\d.*\.where"):
        few.split(0.3, seed=seed)


def test_a_part_shorter_than_its_windows_is_named():
    examples = described(make_data(), window={"row": 21}, edges="drop")
    with pytest.raises(ValueError, match=r"part of 0\.1; its windows are longer .*give other"):
        examples.split(0.9)
