"""Scores of forecasts on a grid: errors weighted by area, as a table and as maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

CLIMATOLOGY = "climatology"
"""The forecast whose squared error has skill 0."""

Scores = dict[str, dict[str, float]]


def scores(forecasts: Mapping[str, xr.Dataset], truth: xr.Dataset, area: xr.DataArray) -> Scores:
    """Return errors and skill of forecasts.

    Parameters
    ----------
    forecasts
        By the name of the model, one of them `CLIMATOLOGY`: the variables of `truth` at its places.
    truth
        Variables of (time, lat, lon).
    area
        Weights of the cells, (lat, lon).

    Returns
    -------
    dict
        By the model, then by score: RMSE and MAE of each variable in its own units, and skill, 1
        minus the squared error as a share of that of the climatology, all in float64. All forecasts
        are judged where all of them, and the truth, are known.
    """
    known = truth.notnull()
    for forecast in forecasts.values():
        known = known & forecast.notnull()
    judged = truth.where(known)
    errors = {name: (forecast - judged).astype(np.float64) for name, forecast in forecasts.items()}
    squares = {name: _mean(error**2, area) for name, error in errors.items()}
    sizes = {name: _mean(abs(error), area) for name, error in errors.items()}
    table: Scores = {name: {} for name in forecasts}
    for name, found in table.items():
        for variable in map(str, truth.data_vars):
            square = squares[name][variable]
            found[f"{variable} RMSE"] = square**0.5
            found[f"{variable} MAE"] = sizes[name][variable]
            found[f"{variable} skill"] = 1 - square / squares[CLIMATOLOGY][variable]
    return table


def _mean(values: xr.Dataset, area: xr.DataArray) -> dict[str, float]:
    means = values.weighted(area).mean(("time", "lat", "lon")).compute()
    return {str(name): float(mean) for name, mean in means.items()}


def report(table: Scores, ours: str) -> str:
    """Return the scores as a table, and how the first model's RMSE compares with each baseline's.

    Parameters
    ----------
    table
        As `scores` returns them.
    ours
        The model that is compared.
    """
    columns = list(table[ours])
    width = max(len(name) for name in table) + 2
    lines = [f"{'':{width}}" + "".join(f"{column:>13}" for column in columns)]
    for name, found in table.items():
        lines.append(f"{name:{width}}" + "".join(f"{found[column]:13.4f}" for column in columns))
    return "\n".join([*lines, *_compared(table, ours)])


def _compared(table: Scores, ours: str) -> list[str]:
    lines = []
    for column in (column for column in table[ours] if column.endswith("RMSE")):
        others = {name: found[column] for name, found in table.items() if name != ours}
        best = min(others, key=lambda name: others[name])
        change = 100 * (table[ours][column] / others[best] - 1)
        verdict = "beats all baselines" if change < 0 else "does not beat all baselines"
        lines.append(
            f"{column}: {ours} {verdict}; it is {change:+.2f} % from the best of them, {best}"
        )
    return lines


def draw(
    path: Path,
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    area: xr.DataArray,
    ours: str,
    coast: xr.DataArray | None = None,
) -> None:
    """Write maps of a forecast's error, and of how much smaller it is than climatology's.

    Parameters
    ----------
    path
        The PNG file.
    forecasts, truth, area
        As `scores` takes them. Cells of area 0 are left white.
    ours
        The model that is drawn.
    coast
        Heights above the sea, (lat, lon), whose line of 0 is drawn.
    """
    from matplotlib.figure import Figure

    names = list(truth.data_vars)
    figure = Figure(figsize=(6.4 * len(names), 6.2), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey=True)
    for column, name in enumerate(names):
        error = _rmse(forecasts[ours][name] - truth[name], area)
        usual = _rmse(forecasts[CLIMATOLOGY][name] - truth[name], area)
        units = truth[name].attrs.get("units", "")
        most = float(error.quantile(0.99))
        label = f"RMSE {units and f'in {units}'}"
        _map(axes[0, column], error, f"{name}: error of {ours}", label, 0, most, "viridis")
        skill = (1 - (error / usual.where(usual > 0)) ** 2).clip(-1, 1)
        _map(axes[1, column], skill, f"{name}: skill against climatology", "", -0.6, 0.6, "RdBu_r")
    for axis in axes.flat:
        if coast is not None:
            _draw_coast(axis, coast, truth["lon"])
    for axis in axes[1]:
        axis.set_xlabel("longitude")
    for axis in axes[:, 0]:
        axis.set_ylabel("latitude")
    figure.savefig(path, dpi=110)


def _rmse(error: xr.DataArray, area: xr.DataArray) -> xr.DataArray:
    """Return the root of the mean square over time, (lat, lon), NaN where no area counts."""
    squares = (error.astype(np.float64) ** 2).mean("time").where(area > 0)
    return (squares.compute() ** 0.5).transpose("lat", "lon")


def _map(
    axis: Any,
    values: xr.DataArray,
    title: str,
    label: str,
    least: float,
    most: float,
    colours: str,
) -> None:
    mesh = axis.pcolormesh(
        values["lon"], values["lat"], values.values, vmin=least, vmax=most, cmap=colours
    )
    axis.set_title(title)
    axis.figure.colorbar(mesh, ax=axis, label=label, shrink=0.85)


def _draw_coast(axis: Any, coast: xr.DataArray, lon: xr.DataArray) -> None:
    east = lon.min() + (coast["lon"] - lon.min()) % 360
    shown = coast.assign_coords(lon=east.values).sortby("lon")
    shown = shown.sel(lon=slice(None, float(lon.max())))
    axis.contour(shown["lon"], shown["lat"], shown.values, [0.0], colors="black", linewidths=0.4)
