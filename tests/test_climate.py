"""The climate pipeline, run as a person runs it, on little grids whose future is known."""

import os

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("scipy", reason="needs SciPy: dbdask[climate]")
pytest.importorskip("matplotlib", reason="needs matplotlib: dbdask[climate]")

import dbdask
from pipelines import winds
from pipelines.climate import DIMS, cells_of, main, past_of
from pipelines.fields import memory_of, write_fields
from pipelines.forecast_scores import report, scores

MONTHS, LAT, LON = 84, 5, 10
HELD_OUT = 24


def months(count):
    first = np.datetime64("2001-01", "M")
    return (first + np.arange(count)).astype("datetime64[ns]")


def grid(values, names=("sst",)):
    """A Dataset of (time, lat, lon) arrays, on the whole globe."""
    count, lat, lon = values[0].shape
    coords = {
        "time": months(count),
        "lat": np.linspace(-60, 60, lat),
        "lon": np.arange(lon) * 360 / lon,
    }
    return xr.Dataset({n: (DIMS, v) for n, v in zip(names, values, strict=True)}, coords)


def wave(seed=0):
    """A wave that goes one cell east a month, on a seasonal cycle, with noise and land."""
    rng = np.random.default_rng(seed)
    month, lon = np.arange(MONTHS), np.arange(LON)
    moving = np.sin(4 * np.pi * (lon - month[:, None]) / LON)[:, None, :]
    season = 5 * np.cos(2 * np.pi * month / 12)[:, None, None]
    values = 15 + season + moving + 0.1 * rng.normal(size=(MONTHS, LAT, LON))
    values[:, 1, 3:5] = np.nan
    return grid([values.astype(np.float32)])


def test_what_is_learnt_is_learnt_before_the_held_out_steps(tmp_path):
    data = grid([np.random.default_rng(0).normal(size=(48, LAT, LON))])
    changed = data.copy(deep=True)
    changed["sst"][-12:] += 100
    first, second = (
        write_fields(given, tmp_path / f"{number}.zarr", held_out=12).open().load()
        for number, given in enumerate((data, changed))
    )
    for name in ("sst_climatology", "sst_memory"):
        np.testing.assert_array_equal(first[name], second[name])
    wanted = data["sst"][:36].groupby("time.month").mean("time").values
    np.testing.assert_allclose(first["sst_climatology"][36:], wanted, rtol=1e-6)
    np.testing.assert_allclose(
        second["sst_anomaly"] - first["sst_anomaly"],
        np.repeat([0, 100], [36, 12])[:, None, None] * np.ones((1, LAT, LON)),
        atol=1e-4,
    )


def test_memory_is_the_share_of_an_anomaly_that_stays():
    rng = np.random.default_rng(1)
    values = [rng.normal(size=(LAT, LON))]
    for _ in range(599):
        values.append(0.6 * values[-1] + rng.normal(size=(LAT, LON)))
    data = grid([np.array(values)])
    data["sst"][:, 0, 0] = np.nan
    memory = memory_of(data, 100, circle=True)["sst"]
    assert memory.dims == ("lat", "lon") and memory.dtype == np.float32
    np.testing.assert_allclose(memory, 0.6, atol=0.05)
    np.testing.assert_array_equal(memory_of(data * np.nan, 100, circle=True)["sst"], 0)


def test_expected_and_surprise_make_the_value(tmp_path):
    data = wave()
    fields = write_fields(data, tmp_path / "fields.zarr", held_out=HELD_OUT).open().load()
    last = fields["sst_anomaly"].shift(time=1)
    expected = fields["sst_climatology"] + fields["sst_memory"] * last
    np.testing.assert_allclose(fields["sst_expected"], expected, rtol=1e-5)
    whole = (fields["sst_expected"] + fields["sst_surprise"])[1:]
    np.testing.assert_allclose(whole, data["sst"][1:], rtol=1e-5)
    np.testing.assert_allclose(fields["area"][:, 0], np.cos(np.deg2rad(data["lat"])), rtol=1e-6)


def test_a_month_that_is_held_out_only_is_named(tmp_path):
    data = grid([np.zeros((20, LAT, LON))])
    with pytest.raises(ValueError, match=r"month 11 is in none of the steps .*: hold out fewer"):
        write_fields(data, tmp_path / "fields.zarr", held_out=10)
    with pytest.raises(ValueError, match="held_out must leave 2 or more of the 20"):
        write_fields(data, tmp_path / "fields.zarr", held_out=19)
    numbered = data.assign_coords(time=np.arange(20))
    with pytest.raises(ValueError, match="time must be dates, got int64"):
        write_fields(numbered, tmp_path / "fields.zarr", held_out=5)


def test_no_held_out_step_is_a_target_of_training(tmp_path):
    data = grid([np.random.default_rng(0).normal(size=(60, LAT, LON)).astype(np.float32)])
    fields = write_fields(data, tmp_path / "fields.zarr", held_out=12)
    for thin, cells in ((1, LAT * LON), (2, 3 * 5)):
        past = past_of(cells_of(fields, 3, 1), fields, thin)
        assert len(past) == (60 - 12 - 3) * cells
    surprises = fields.open()["sst_surprise"].values
    targets = past_of(cells_of(fields, 3, 1), fields, 1).batch(10_000).targets
    np.testing.assert_array_equal(targets.ravel(), surprises[3:-12].ravel())


def test_scores_weigh_by_area_and_judge_where_all_is_known():
    truth = grid([np.zeros((2, 2, 2))])
    area = xr.DataArray([[3.0, 3.0], [1.0, 0.0]], dims=("lat", "lon"))
    errors = np.array([[[1.0, 1.0], [5.0, 99.0]]] * 2)
    wrong = grid([errors])
    usual = grid([np.full((2, 2, 2), 4.0)])
    table = scores({"network": wrong, "climatology": usual}, truth, area)
    found = table["network"]
    assert found["sst RMSE"] == pytest.approx(np.sqrt((3 + 3 + 25) / 7))
    assert found["sst MAE"] == pytest.approx((3 + 3 + 5) / 7)
    assert found["sst skill"] == pytest.approx(1 - (31 / 7) / 16)
    assert "network beats all baselines" in report(table, "network")
    assert "climatology does not beat all baselines" in report(table, "climatology")
    usual["sst"][:, 1, 0] = np.nan
    table = scores({"network": wrong, "climatology": usual}, truth, area)
    assert table["network"]["sst RMSE"] == pytest.approx(1)


def table_of(said):
    """Return the RMSE of each model, as the program said it."""
    rows = said[said.index("weighted by area:") :].splitlines()[2:7]
    return {row[:22].strip(): float(row[22:].split()[0]) for row in rows}


def run(client, folder, *arguments):
    given = ["--scheduler", client.scheduler.address]
    given += ["--store", str(folder / "sst.zarr"), "--dims", "month", "y", "x"]
    quick = ["--holdout", str(HELD_OUT), "--window", "1", "--optimizer", "adam:0.02"]
    assert main([*given, *quick, "--output", str(folder / "out"), *arguments]) == 0
    return folder / "out"


def store(folder):
    data = wave().rename(time="month", lat="y", lon="x")
    data["sst"].attrs["units"] = "degC"
    data.chunk(month=42).to_zarr(folder / "sst.zarr", zarr_format=2)
    return data


@pytest.mark.slow
def test_a_wave_that_travels_is_forecast_better_than_by_persistence(
    tmp_path, capsys, threads_client
):
    data = store(tmp_path)
    output = run(threads_client, tmp_path, "--radius", "1", "--thin", "1", "--batch-size", "64")
    found = table_of(capsys.readouterr().out)
    assert list(found) == [
        "network",
        "linear regression",
        "damped persistence",
        "climatology",
        "persistence",
    ]
    assert found["network"] < 0.35 * min(
        found[name] for name in ("damped persistence", "climatology", "persistence")
    )
    assert found["linear regression"] < 0.3  # the wave is linear, and the noise 0.1
    forecast = xr.open_zarr(output / "forecast.zarr", consolidated=False)["sst"]
    wanted = data["sst"][-HELD_OUT:]
    xr.align(wanted, forecast, join="exact")
    assert forecast.dims == ("month", "y", "x") and forecast.attrs["units"] == "degC"
    np.testing.assert_array_equal(forecast.isnull(), wanted.isnull())
    error = np.sqrt((forecast - wanted) ** 2).weighted(np.cos(np.deg2rad(data["y"])))
    assert float(error.mean()) < found["network"]
    assert (output / "error.png").stat().st_size > 10_000
    fields = xr.open_zarr(output / "fields.zarr", consolidated=False)
    surprise = dbdask.load(output / "model.zarr").predict(output / "fields.zarr")
    again = (surprise + fields["sst_expected"])[-HELD_OUT:]
    np.testing.assert_allclose(again, forecast, rtol=1e-6)


@pytest.mark.slow  # it imports PyTorch
def test_a_convolution_goes_round_the_globe():
    torch = pytest.importorskip("torch", reason="needs PyTorch: dbdask[torch]")
    from pipelines.whole_map import MapNetwork

    torch.manual_seed(0)
    network = MapNetwork(2, 3, LAT, LON, circle=True, channels=4)
    planes = torch.randn(2, 10, LAT, LON)
    rest = torch.randn(2, 2 + 2 * LAT)

    def forecast(planes):
        with torch.no_grad():
            return network(torch.cat([planes.flatten(1), rest], dim=1))

    assert forecast(planes).shape == (2, LAT, LON, 2)
    assert not forecast(planes).any()  # an untrained network forecasts no surprise
    for parameter in network.layers[-1].parameters():
        torch.nn.init.normal_(parameter)
    turned = forecast(planes.roll(3, dims=3))
    torch.testing.assert_close(turned, forecast(planes).roll(3, dims=2))


@pytest.mark.slow
def test_whole_maps_of_an_ocean_are_forecast(tmp_path, capsys, threads_client):
    pytest.importorskip("torch", reason="needs PyTorch: dbdask[torch]")
    data = store(tmp_path)
    output = run(threads_client, tmp_path, "--whole-map", "--epochs", "40", "--weight-decay", "0")
    found = table_of(capsys.readouterr().out)
    assert found["network"] < 0.5 * min(
        found[name] for name in ("damped persistence", "climatology", "persistence")
    )
    forecast = xr.open_zarr(output / "forecast.zarr", consolidated=False)["sst"]
    np.testing.assert_array_equal(forecast.isnull(), data["sst"][-HELD_OUT:].isnull())


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_winds_are_fetched_once_and_kept(tmp_path, monkeypatch, capsys):
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "apt-get", f"touch {winds.PACKAGE}_1_all.deb")
    files = " ".join(f"$3/{winds.INSIDE / name}" for name in (winds.WINDS, winds.RELIEF))
    program(programs, "dpkg-deb", f"mkdir -p $3/{winds.INSIDE} && touch {files}")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    cache, installed = tmp_path / "cache", tmp_path / "installed"
    assert winds.obtain(cache, installed) == cache
    assert "fetching the Debian package" in capsys.readouterr().out
    assert sorted(path.name for path in cache.iterdir()) == sorted([winds.WINDS, winds.RELIEF])
    program(programs, "apt-get", "echo no route >&2; exit 100")
    assert winds.obtain(cache, installed) == cache
    assert "fetching" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"apt-get says: no route: install .* or give"):
        winds.obtain(tmp_path / "other", installed)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get is not on this machine"):
        winds.obtain(tmp_path / "other", installed)


def test_ferrets_axes_are_renamed(tmp_path):
    coords = {"TIME": months(2), "FNOCY": [-90.0, 90.0], "FNOCX": [20.0, 200.0]}
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    stored = {name: (tuple(coords), values) for name in ("UWND", "VWND")}
    xr.Dataset(stored, coords).to_netcdf(tmp_path / winds.WINDS, engine="scipy")
    found = winds.winds(tmp_path)
    assert found["UWND"].dims == DIMS and found["VWND"].attrs["units"] == "m/s"
    np.testing.assert_array_equal(found["UWND"], values)
    with pytest.raises(FileNotFoundError, match="holds no etopo60.cdf"):
        winds.relief(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--window", "0"], "--window must be at least 1, got 0"),
        (["--layers", "big"], "--layers"),
        (["--optimizer", "newton:1"], "--optimizer"),
    ],
)
def test_wrong_flags_are_named_before_work_begins(arguments, match):
    with pytest.raises(SystemExit, match=match):
        main(arguments)


def test_a_variable_that_the_store_lacks_is_named(tmp_path):
    from pipelines.climate import own

    store(tmp_path)
    path = str(tmp_path / "sst.zarr")
    with pytest.raises(SystemExit, match=r"--variables must be of \['sst'\], got 'sss'"):
        own(path, ["sss"], ("month", "y", "x"))
    with pytest.raises(SystemExit, match="no variable of .* has the dimensions"):
        own(path, None, DIMS)
