"""The tabular pipeline, run as a person runs it, on a little table."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("dask.dataframe", reason="needs dask[dataframe]: dbdask[tabular]")
pytest.importorskip("sklearn", reason="needs scikit-learn: dbdask[tabular]")

import dask.dataframe as dd

import dbdask
from pipelines.calibration import scores, without_weights
from pipelines.tables import MISSING, learn_encoding, read_table
from pipelines.tabular import main


def table(rows, seed):
    """A made-up table: a rare event that depends on a number, its gaps, and a category."""
    rng = np.random.default_rng(seed)
    wind = rng.gamma(2, 5, rows)
    kind = rng.choice(["jet", "turboprop", "other"], rows, p=[0.6, 0.39, 0.01])
    score = 0.25 * wind + 2 * (kind == "turboprop") + rng.logistic(size=rows)
    lost = rng.random(rows) < 0.2
    frame = pd.DataFrame(
        {
            "wind": np.where(lost, np.nan, wind),
            "seats": rng.integers(50, 300, rows),
            "month": rng.integers(1, 13, rows),
            "kind": np.where(rng.random(rows) < 0.1, None, kind),
            "late": np.where(score > np.quantile(score, 0.9), "yes", "no"),
        }
    )
    return frame


def test_an_encoding_learns_from_the_training_rows_only():
    train, other = table(3000, 0), table(50, 1)
    train.loc[train["kind"] == "other", "kind"] = "jet"
    train.loc[0, "kind"] = "blimp"
    other.loc[:4, "kind"] = "other"
    rows = dd.from_pandas(train, npartitions=3)
    encoding = learn_encoding(rows, "late", "yes", ["month"])
    assert encoding.numbers == ("wind", "seats") and encoding.gaps == ("wind",)
    levels = [level for column, level in encoding.levels if column == "kind"]
    assert levels == [MISSING, "jet", "turboprop"]  # a blimp is too rare for a column
    assert [level for column, level in encoding.levels if column == "month"] == sorted(
        str(month) for month in range(1, 13)
    )
    assert encoding.share == pytest.approx((train["late"] == "yes").mean())
    arrays = encoding.encode(other)
    is_kind = np.array([column == "kind" for column, _ in encoding.levels])
    assert not arrays["categories"][:5, is_kind].any()  # no training row had this kind
    np.testing.assert_array_equal(arrays["categories"][:, ~is_kind].sum(axis=1), 1)
    np.testing.assert_array_equal(arrays["gaps"][:, 0], other["wind"].isna())
    np.testing.assert_array_equal(np.isnan(arrays["numbers"][:, 0]), other["wind"].isna())
    np.testing.assert_array_equal(arrays["target"], other["late"] == "yes")
    with pytest.raises(ValueError, match="0 of 3000 training rows have late='1'"):
        learn_encoding(rows, "late", "1")


def test_weights_are_undone():
    rng = np.random.default_rng(0)
    true = rng.beta(1, 9, 100_000)
    targets = (rng.random(100_000) < true).astype(int)
    weighted = 9 * true / (9 * true + 1 - true)
    assert scores(targets, weighted)["calibration error"] > 0.2
    assert scores(targets, without_weights(weighted, 9.0))["calibration error"] < 0.01


def run(folder, pattern, *arguments):
    given = ["--table", str(pattern), "--target", "late", "--positive", "yes"]
    quick = ["--layers", "1x16", "--epochs", "5", "--batch-size", "64", "--replicas", "1"]
    assert main([*given, *quick, "--output", str(folder / "out"), *arguments]) == 0
    return folder / "out"


def test_from_csv_files_to_probabilities(tmp_path, capsys):
    rows = table(4000, 2)
    for part in range(3):
        rows[part::3].to_csv(tmp_path / f"table-{part}.csv", index=False)
    output = run(tmp_path, tmp_path / "table-*.csv", "--categories", "month")
    said = capsys.readouterr().out
    ours, theirs = (
        float(line.split()[-3])
        for line in said.splitlines()
        if line.startswith(("dbdask ", "scikit-learn's "))
    )
    assert ours > 0.75 and ours > theirs - 0.03
    held_out = xr.open_zarr(output / "held_out.zarr", consolidated=False)
    predicted = xr.open_zarr(output / "probabilities.zarr", consolidated=False)["target"]
    assert predicted.sizes == {"row": held_out.sizes["row"], "class": 2}
    assert (output / "calibration.png").stat().st_size > 10_000
    result = dbdask.load(output / "model.zarr")
    again = result.predict_proba(output / "held_out.zarr")
    np.testing.assert_array_equal(again.values, predicted.values)


def test_parquet_is_read_as_csv_is(tmp_path):
    rows = table(500, 3)
    rows.to_parquet(tmp_path / "table.parquet")
    rows.to_csv(tmp_path / "table.csv", index=False)
    arrays = []
    for name in ("table.parquet", "table.csv"):
        read = read_table(str(tmp_path / name))
        encoding = learn_encoding(read, "late", "yes", ["month"])
        arrays.append((encoding, encoding.encode(read.compute())))
    assert arrays[0][0] == arrays[1][0]
    for name, values in arrays[0][1].items():
        np.testing.assert_allclose(values, arrays[1][1][name], err_msg=name)


def test_wrong_flags_are_named(tmp_path):
    with pytest.raises(SystemExit, match="belong together"):
        main(["--target", "late"])
    table(50, 0).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(SystemExit, match="--target must be one of"):
        main(["--table", str(tmp_path / "table.csv"), "--target", "lat"])
