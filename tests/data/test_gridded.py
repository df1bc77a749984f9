"""One gridded store, from packed chunks to an aligned prediction, by each of the four routes."""

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.data.block_provider import BlockProvider

LAT, LON, DAYS = 8, 6, 30
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}
CHUNKS = (4, 3, 10)


def grid():
    """Two fields that vary, one that does not, land that is missing, and the cosine of latitude."""
    rng = np.random.default_rng(3)
    lat = np.linspace(-70, 70, LAT)
    height = rng.normal(size=(LAT, LON))
    pressure = rng.normal(size=(LAT, LON, DAYS))
    ocean = height < 0.7
    temperature = 15 * np.cos(np.deg2rad(lat))[:, None, None] + rng.normal(size=pressure.shape)
    temperature = np.where(ocean[:, :, None], 280 + temperature, np.nan)
    flux = 0.3 * (temperature - 290) + pressure + height[:, :, None]
    dims = ("lat", "lon", "time")
    return xr.Dataset(
        {
            "temperature": (dims, temperature),
            "pressure": (dims, pressure.astype(np.float32)),
            "height": (("lat", "lon"), height.astype(np.float32)),
            "flux": (dims, flux.astype(np.float32)),
            "area": ("lat", np.cos(np.deg2rad(lat))),
        },
        coords={
            "lat": lat,
            "lon": np.arange(LON) * 60.0,
            "time": np.datetime64("2001-01-01", "ns") + np.arange(DAYS) * np.timedelta64(1, "D"),
        },
    )


def write(path, zarr_format, sharded):
    encoding = {name: {"chunks": CHUNKS} for name in ("temperature", "pressure", "flux")}
    encoding["temperature"] |= PACKED
    if sharded:
        for name in encoding:
            encoding[name]["shards"] = (8, 6, 10)
    grid().to_zarr(path, zarr_format=zarr_format, encoding=encoding, consolidated=False)
    return str(path)


ROUTES = {
    "store": lambda path: path,
    "lazy": lambda path: xr.open_zarr(path, chunks=None, consolidated=False),
    "dask": lambda path: xr.open_zarr(path, consolidated=False),
    "memory": lambda path: xr.open_zarr(path, consolidated=False).load(),
}


def described(data, client):
    return dbdask.Examples(
        data,
        inputs=["temperature", "pressure", "height"],
        targets="flux",
        along=("time", "lat", "lon"),
        window={"time": (-1, 0)},
        weights="area",
        missing="drop",
    ).standardize(client=client)


def minibatches(examples, client):
    """Every minibatch of an epoch, as the bytes that a replica would see."""
    provider, cut = BlockProvider(examples.recipe, client), examples.cut(400, 50)
    with examples.reader(prefetch=False) as reader:
        for portion in cut.portions(5, 0):
            for batch in reader.minibatches(portion, 50):
                yield batch.inputs.tobytes(), batch.targets.tobytes(), batch.weights.tobytes()
    provider.close()


@pytest.mark.slow
@pytest.mark.parametrize(("zarr_format", "sharded"), [(2, False), (3, False), (3, True)])
def test_a_grid_trains_by_every_route_and_predicts_on_itself(
    tmp_path, threads_client, zarr_format, sharded
):
    path = write(tmp_path / "grid.zarr", zarr_format, sharded)
    seen, trained = {}, {}
    for route, given in ROUTES.items():
        examples = described(given(path), threads_client)
        assert examples.input_shape == (2, 3)
        seen[route] = list(minibatches(examples, threads_client))
        model = dbdask.Network(
            input_shape=examples.input_shape, layers=[dbdask.Dense(1)], loss="squared"
        )
        with pytest.warns(UserWarning, match=r"\(\d+\.\d %\) are left out as missing"):
            trained[route] = dbdask.downpour(
                model,
                examples,
                client=threads_client,
                optimizer=dbdask.adagrad(0.3),
                batch_size=20,
                epochs=2,
                replicas=1,
                progress=False,
            )
    for route in ROUTES:
        assert seen[route] == seen["store"], route
        for name, values in trained["store"].parameters.items():
            np.testing.assert_array_equal(trained[route].parameters[name], values, err_msg=route)

    result, data = trained["store"], grid()
    prediction = result.predict(path)
    assert prediction.dims == ("lat", "lon", "time")
    xr.align(xr.open_zarr(path, consolidated=False), prediction, join="exact")
    values = prediction.compute()
    land = np.isnan(data["temperature"].values)
    assert np.isnan(values.values[..., 1:][land[..., 1:]]).all()
    assert np.isfinite(values.values[~land]).all()
    scores = result.evaluate(described(path, threads_client))
    assert scores["r2"] > 0.95
    error = (values - data["flux"]).values[~land]
    weights = np.broadcast_to(data["area"].values[:, None, None], land.shape)[~land]
    rmse = np.sqrt((weights * error**2).sum() / weights.sum())
    assert scores["rmse"] == pytest.approx(rmse, rel=1e-4)
