"""Climate: gridded variables one step ahead, and how far each forecast is from what came.

    python -m pipelines.climate                                   # monthly winds of the globe
    python -m pipelines.climate --whole-map                       # all cells at once, by PyTorch
    python -m pipelines.climate --store sst.zarr --variables sst --dims time latitude longitude

A network sees the last months at a cell, its climatology, its place and the season, and learns
what damped persistence leaves. It is compared with persistence, damped persistence, climatology
and a linear regression on the same inputs, on years that nothing was learnt from.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr
from distributed import Client

import dbdask
from pipelines import winds
from pipelines.command_line import cluster, hidden_layers, optimizer, say
from pipelines.fields import DIMS, Fields, write_fields
from pipelines.forecast_scores import CLIMATOLOGY, draw, report, scores

if TYPE_CHECKING:
    from dbdask.torch import TorchModel

NETWORK, REGRESSION = "network", "linear regression"
PERSISTENCE, DAMPED = "persistence", "damped persistence"


@dataclass(frozen=True)
class Grid:
    """The gridded variables, of (time, lat, lon), and what is known of the ground below."""

    data: xr.Dataset
    own_names: dict[str, str]
    """The dimensions' names in the user's store, by the names here."""
    ocean: xr.DataArray | None = None
    heights: xr.DataArray | None = None


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    found = argparse.ArgumentParser("pipelines.climate", description=__doc__.split("\n")[0])
    found.add_argument("--store", help="a Zarr store of your own; default: monthly winds")
    found.add_argument("--variables", nargs="+", help="of the store; default: all of its --dims")
    found.add_argument(
        "--dims", nargs=3, default=DIMS, help="names of time, latitude and longitude in the store"
    )
    found.add_argument("--winds", type=Path, help="folder of the package's files, if you have it")
    found.add_argument("--holdout", type=int, default=36, help="last time steps that are held out")
    found.add_argument("--window", type=int, default=3, help="last time steps that are seen")
    found.add_argument("--radius", type=int, default=0, help="cells around that are seen")
    found.add_argument(
        "--thin", type=int, default=2, help="train on every so many-th cell; neighbours are alike"
    )
    found.add_argument("--whole-map", action="store_true", help="forecast maps, by convolutions")
    found.add_argument("--channels", type=int, default=16, help="of the convolutions")
    found.add_argument("--layers", default="1x32", help="hidden layers of a cell's network")
    found.add_argument("--optimizer", default="adam:0.001", help="NAME:RATE; the rate falls to 0")
    found.add_argument("--weight-decay", type=float, default=0.01)
    found.add_argument("--epochs", type=int, help="default: 4; 12 with --whole-map")
    found.add_argument("--batch-size", type=int, help="default: 256; 4 with --whole-map")
    found.add_argument("--replicas", type=int, help="default: one for each worker")
    found.add_argument("--scheduler", help="address; default: two processes of this machine")
    found.add_argument("--output", type=Path, default=Path("demo-climate"))
    found.add_argument("--seed", type=int, default=0)
    return found


def embedded(folder: Path | None, whole_map: bool) -> Grid:
    """Return the winds; with `whole_map` only those over the ocean count."""
    folder = folder or winds.obtain(winds.default_cache())
    data, heights = winds.winds(folder), winds.relief(folder)
    sea = winds.ocean(heights, data["lat"], data["lon"]) if whole_map else None
    return Grid(data, dict(zip(DIMS, DIMS, strict=True)), sea, heights)


def own(store: str, variables: Sequence[str] | None, dims: Sequence[str]) -> Grid:
    """Return the variables of a user's store, lazily.

    Raises
    ------
    SystemExit
        The store lacks a variable, or has none of these dimensions.
    """
    data = xr.open_zarr(store)
    names = list(variables or [n for n, v in data.data_vars.items() if set(v.dims) == set(dims)])
    if not names:
        raise SystemExit(f"--dims: no variable of {store} has the dimensions {tuple(dims)}")
    for name in names:
        if name not in data.data_vars:
            raise SystemExit(f"--variables must be of {list(data.data_vars)}, got {name!r}")
        if set(data[name].dims) != set(dims):
            raise SystemExit(
                f"--dims must be those of {name!r}, {data[name].dims}, got {tuple(dims)}"
            )
    renamed = dict(zip(dims, DIMS, strict=True))
    chosen = data[names].reset_coords(drop=True).rename(renamed)
    return Grid(chosen, dict(zip(DIMS, dims, strict=True)))


def cells_of(fields: Fields, window: int, radius: int) -> dbdask.Examples:
    """Describe what is an example: a cell at a time, with the steps before, and its surprise."""
    seen = {"time": (-window, -1)}
    if radius:
        seen |= {"lat": (-radius, radius), "lon": (-radius, radius)}
    return dbdask.Examples(
        fields.path,
        inputs=fields.inputs(seen, ("season", "latitude", "longitude")),
        targets=fields.names("surprise"),
        along=DIMS,
        edges={"time": "drop", "lat": "repeat", "lon": "wrap" if fields.circle else "repeat"},
        weights="area",
        missing="mask",
    )


def past_of(examples: dbdask.Examples, fields: Fields, thin: int) -> dbdask.Examples:
    """Return the examples before the steps held out, at every `thin`-th cell."""
    sizes = fields.open().sizes
    past, _ = examples.split(1 - fields.held_out / sizes["time"], overlap=True)
    if thin == 1:
        return past
    lat, lon = (xr.DataArray(range(sizes[dim]), dims=dim) % thin == 0 for dim in ("lat", "lon"))
    return past.where(lat & lon)


def train(
    client: Client,
    model: "dbdask.Network | TorchModel",
    examples: dbdask.Examples,
    options: argparse.Namespace,
) -> dbdask.Result:
    """Train a model by Downpour, with a rate that falls."""
    say(f"training {model.parameter_count:,} parameters on {len(examples):,} examples")
    steps = options.epochs * (len(examples) // options.batch_size + 1)
    rule = optimizer(options.optimizer, weight_decay=options.weight_decay, steps=steps)
    return dbdask.downpour(
        model,
        examples,
        client=client,
        optimizer=rule,
        epochs=options.epochs,
        batch_size=options.batch_size,
        replicas=options.replicas,
        seed=options.seed,
    )


def train_cells(
    client: Client, examples: dbdask.Examples, options: argparse.Namespace
) -> dbdask.Result:
    """Train the network of a cell."""
    outputs = dbdask.Dense(examples.target_shape[0] if examples.target_shape else 1)
    hidden = [dbdask.Dense(units, "relu") for units in hidden_layers(options.layers)]
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[*hidden, outputs], loss="squared"
    )
    return train(client, model, examples, options)


def train_maps(client: Client, fields: Fields, options: argparse.Namespace) -> dbdask.Result:
    """Train the network of whole maps."""
    from pipelines.whole_map import maps_of, model_of, nothing

    say("importing PyTorch in the workers")
    client.run(nothing)  # the check of a worker has a deadline, which a busy machine may miss
    examples = past_of(maps_of(fields, options.window), fields, 1)
    scaled = [*fields.names("anomaly"), *fields.names("climatology")]
    examples = examples.standardize(variables=scaled, targets=True, client=client)
    model = model_of(fields, options.window, channels=options.channels, seed=options.seed)
    return train(client, model, examples, options)


def regression(client: Client, examples: dbdask.Examples) -> dbdask.Result:
    """Return the linear regression on the same inputs: one layer, brought to its optimum.

    It has few parameters, so L-BFGS remembers more steps than it takes.
    """
    outputs = dbdask.Dense(examples.target_shape[0] if examples.target_shape else 1)
    model = dbdask.Network(input_shape=examples.input_shape, layers=[outputs], loss="squared")
    return dbdask.sandblaster(model, examples, client=client, history_length=50, l2=1e-6)


def forecast(result: dbdask.Result, fields: Fields) -> xr.Dataset:
    """Return what a model forecasts for the steps held out, in the variables' units, lazily."""
    predicted = result.predict(fields.path)
    surprises = predicted.to_dataset() if isinstance(predicted, xr.DataArray) else predicted
    surprises = surprises.isel(time=slice(-fields.held_out, None))
    named = surprises.rename(dict(zip(fields.names("surprise"), fields.variables, strict=True)))
    return named + fields.of_kind("expected")


def persistence(grid: Grid, fields: Fields) -> xr.Dataset:
    """Return the forecast that the last anomaly stays."""
    last = fields.open()[fields.names("anomaly")].shift(time=1)
    last = last.isel(time=slice(-fields.held_out, None))
    named = last.rename(dict(zip(fields.names("anomaly"), fields.variables, strict=True)))
    return named + fields.of_kind("climatology")


def summary(folder: Path, name: str) -> str:
    """Return what the program leaves, and the lines that load it."""
    return f"""
  {folder / "fields.zarr"}    anomalies, climatology, memory and expected values
  {folder / "model.zarr"}    the trained model, which takes such stores
  {folder / "forecast.zarr"}    forecasts of the steps held out, on the data's own grid
  {folder / "error.png"}    where the forecast is good

Load them with:
  import dbdask, xarray as xr
  forecast = xr.open_zarr("{folder / "forecast.zarr"}", consolidated=False)["{name}"]
"""


def compare(
    client: Client, grid: Grid, fields: Fields, result: dbdask.Result, options: argparse.Namespace
) -> None:
    """Write the forecast and its map, and say how it compares with the baselines."""
    folder: Path = options.output
    ours = forecast(result, fields).assign_attrs(model=NETWORK)
    for name in fields.variables:
        ours[name].attrs = dict(grid.data[name].attrs)
    named = ours.rename(grid.own_names)
    named.drop_encoding().to_zarr(folder / "forecast.zarr", mode="w", consolidated=False)
    cells = past_of(cells_of(fields, options.window, options.radius), fields, options.thin)
    linear = regression(client, cells.standardize(client=client))
    say(f"linear regression: {linear.status.message}")
    written = xr.open_zarr(folder / "forecast.zarr", consolidated=False)
    forecasts = {
        NETWORK: written.rename({own: name for name, own in grid.own_names.items()}),
        REGRESSION: forecast(linear, fields),
        DAMPED: fields.of_kind("expected"),
        CLIMATOLOGY: fields.of_kind("climatology"),
        PERSISTENCE: persistence(grid, fields),
    }
    forecasts = {name: one.compute() for name, one in forecasts.items()}
    truth = grid.data.isel(time=slice(-fields.held_out, None)).compute()
    area = fields.open()["area"].compute()
    table = scores(forecasts, truth, area)
    draw(folder / "error.png", forecasts, truth, area, NETWORK, grid.heights)
    say(f"{fields.held_out} steps that nothing was learnt from, weighted by area:")
    say(report(table, NETWORK))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline from end to end."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    hidden_layers(options.layers)
    optimizer(options.optimizer)
    for name in ("window", "thin", "holdout"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name} must be at least 1, got {getattr(options, name)}")
    options.epochs = options.epochs or (12 if options.whole_map else 4)
    options.batch_size = options.batch_size or (4 if options.whole_map else 256)
    began, folder = time.monotonic(), options.output
    with cluster(options.scheduler) as client:
        if options.store is None:
            grid = embedded(options.winds, options.whole_map)
        else:
            grid = own(options.store, options.variables, options.dims)
        fields = write_fields(
            grid.data, folder / "fields.zarr", held_out=options.holdout, ocean=grid.ocean
        )
        say(f"the fields are in {fields.path} after {time.monotonic() - began:.0f} s")
        if options.whole_map:
            result = train_maps(client, fields, options)
        else:
            examples = past_of(
                cells_of(fields, options.window, options.radius), fields, options.thin
            )
            result = train_cells(client, examples.standardize(client=client), options)
        say(f"trained after {time.monotonic() - began:.0f} s: {result.status.message}")
        result.save(folder / "model.zarr", overwrite=True)
        compare(client, grid, fields, result, options)
    say(summary(folder, fields.variables[0]))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
