"""Fields: gridded variables as a network that looks one step ahead sees them, in one Zarr store.

An anomaly is the distance of a value from the climatology of its calendar month. Part of it stays
for a step: climatology and what stays of the last anomaly are the value that is expected, and the
network learns the surprise, the distance of a value from the expected one. Climatology and memory
are learnt from the steps before those held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from scipy.ndimage import uniform_filter

DIMS = ("time", "lat", "lon")
MAP = ("lat", "lon")
STEPS = 6
"""Time steps of a chunk, unless the data have chunks of their own."""
REACH = 4
"""Cells on either side over which memory is averaged, because few years tell little of one cell."""


@dataclass(frozen=True)
class Fields:
    """A store of fields.

    Parameters
    ----------
    path
        The store. It holds, for each variable, NAME_anomaly, NAME_climatology, NAME_expected and
        NAME_surprise of (time, lat, lon) and NAME_memory of (lat, lon); and season (time, 2),
        latitude (lat, 2), longitude (lon, 2) and area (lat, lon).
    variables
        The names.
    held_out
        The number of last time steps that nothing was learnt from.
    circle
        Whether the longitudes go all the way round.
    """

    path: Path
    variables: tuple[str, ...]
    held_out: int
    circle: bool

    def open(self) -> xr.Dataset:
        """Return the store as a lazy Dataset."""
        found: xr.Dataset = xr.open_zarr(self.path, consolidated=False)
        return found

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind of field, in the order of the variables."""
        return [f"{name}_{kind}" for name in self.variables]

    def inputs(
        self, seen: Mapping[str, tuple[int, int]], places: Sequence[str]
    ) -> dict[str, Mapping[str, tuple[int, int]] | None]:
        """Return the inputs of a network: a window of anomalies, and the rest of where it is."""
        rest = [*self.names("climatology"), *self.names("memory"), *places]
        return dict.fromkeys(self.names("anomaly"), seen) | dict.fromkeys(rest)

    def of_kind(self, kind: str) -> xr.Dataset:
        """Return one kind of field, named as the variables are, at the steps held out."""
        fields = self.open()[self.names(kind)].isel(time=slice(-self.held_out, None))
        return fields.rename(dict(zip(self.names(kind), self.variables, strict=True)))


def write_fields(
    data: xr.Dataset,
    path: Path,
    *,
    held_out: int,
    ocean: xr.DataArray | None = None,
) -> Fields:
    """Write the fields of gridded variables to a Zarr store, in parallel if they are dask arrays.

    Parameters
    ----------
    data
        Variables of (time, lat, lon) in any order; NaN where there is nothing, as over land.
    path
        The store, which is replaced.
    held_out
        The number of last time steps that nothing is learnt from.
    ocean
        The cells that count, bool of (lat, lon); None: all.

    Raises
    ------
    ValueError
        The data have other dimensions, or no times; too few steps are left to learn from; or a
        calendar month is among those held out only.
    """
    _check(data, held_out)
    circle = is_circle(data["lon"].values)
    climatology = climatology_of(data, held_out)
    anomalies = (data - climatology).astype(np.float32)
    memory = memory_of(anomalies, held_out, circle)
    expected = climatology + memory * anomalies.shift(time=1)
    kinds = {
        "anomaly": anomalies,
        "climatology": climatology.astype(np.float32),
        "expected": expected.astype(np.float32),
        "surprise": (data - expected).astype(np.float32),
        "memory": memory,
    }
    named = [
        fields.rename({name: f"{name}_{kind}" for name in data.data_vars})
        for kind, fields in kinds.items()
    ]
    together = xr.merge([*named, places(data)], compat="equals", join="exact")
    area = together["latitude"].isel(part=1).clip(0) * xr.ones_like(data["lon"], np.float32)
    together["area"] = area if ocean is None else (area * ocean).astype(np.float32)
    _write(together, data, path)
    return Fields(path, tuple(map(str, data.data_vars)), held_out, circle)


def _check(data: xr.Dataset, held_out: int) -> None:
    for name, variable in data.data_vars.items():
        if set(variable.dims) != set(DIMS):
            raise ValueError(f"{name!r} must have the dimensions {DIMS}, got {variable.dims}")
    lacking = [dim for dim in DIMS if dim not in data.coords]
    if lacking:
        raise ValueError(f"the data must have coordinates of {DIMS}, but {lacking[0]!r} has none")
    if not hasattr(data["time"], "dt"):
        raise ValueError(
            f"time must be dates, got {data['time'].dtype}: xarray decodes them if the coordinate "
            "has units such as 'days since 2000-01-01'"
        )
    steps = data.sizes["time"]
    if not 1 <= held_out <= steps - 2:
        raise ValueError(
            f"held_out must leave 2 or more of the {steps} time steps, and be at least 1, got "
            f"{held_out}"
        )


def _write(fields: xr.Dataset, data: xr.Dataset, path: Path) -> None:
    """Write fields in chunks of the data's lengths, or of whole maps of a few steps."""
    own = data.chunksizes
    fields = fields.drop_encoding()
    if own:
        fields.chunk({dim: max(own[dim]) for dim in DIMS if dim in own}).to_zarr(
            path, mode="w", consolidated=False
        )
        return
    encoding = {
        name: {
            "chunks": tuple(
                min(STEPS, size) if dim == "time" else size for dim, size in variable.sizes.items()
            )
        }
        for name, variable in fields.data_vars.items()
        if "time" in variable.dims
    }
    fields.to_zarr(path, mode="w", consolidated=False, encoding=encoding)


def climatology_of(data: xr.Dataset, held_out: int) -> xr.Dataset:
    """Return, at each time, the mean of its calendar month over the steps not held out.

    Raises
    ------
    ValueError
        A calendar month is among those held out only.
    """
    past = data.isel(time=slice(None, -held_out))
    means = past.groupby("time.month").mean("time").compute().astype(np.float64)
    months = data["time"].dt.month
    unknown = sorted(set(months.values.tolist()) - set(means["month"].values.tolist()))
    if unknown:
        raise ValueError(
            f"month {unknown[0]} is in none of the steps to learn from, so it has no climatology: "
            "hold out fewer steps"
        )
    means, own = means.reindex(month=range(1, 13)), data.chunksizes
    if own:  # a task for each chunk of the data
        means = means.chunk({dim: own[dim] for dim in MAP}).chunk(month=-1)
        months = months.chunk(time=own["time"])
    found: xr.Dataset = xr.apply_ufunc(
        _of_month,
        means,
        months,
        input_core_dims=[["month"], []],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return found.map(lambda one: one.transpose(*data[one.name].dims))


def _of_month(means: np.ndarray, months: np.ndarray) -> np.ndarray:
    """Return the mean of each cell's month.

    Parameters
    ----------
    means
        (lat, lon, 1, 12), in any order of the cells' dimensions.
    months
        (time,), from 1 to 12.

    Returns
    -------
    array
        (lat, lon, time).
    """
    return means[..., 0, :][..., months - 1]


def memory_of(anomalies: xr.Dataset, held_out: int, circle: bool) -> xr.Dataset:
    """Return the share of an anomaly that stays for one step, of (lat, lon): float32.

    It is the regression of an anomaly on the one before it, over the steps not held out and the
    cells around. It is 0 where no such pair is known.
    """
    past = anomalies.isel(time=slice(None, -held_out)).drop_vars("time")
    before, after = past.isel(time=slice(None, -1)), past.isel(time=slice(1, None))
    known = before.notnull() & after.notnull()
    products, squares = dask.compute(
        (before * after).where(known).mean("time").fillna(0),
        (before**2).where(known).mean("time").fillna(0),
    )
    found = {}
    for name in anomalies.data_vars:
        product, square = (
            around(one[name].transpose(*MAP).astype(np.float64), circle)
            for one in (products, squares)
        )
        found[name] = (product / square.where(square > 0)).fillna(0).astype(np.float32)
    return xr.Dataset(found)


def around(values: xr.DataArray, circle: bool) -> xr.DataArray:
    """Return the mean of each cell and those around it, of (lat, lon), in memory."""
    size = 2 * REACH + 1
    averaged = uniform_filter(
        values.values, size, mode=["nearest", "wrap" if circle else "nearest"]
    )
    return values.copy(data=averaged)


def places(data: xr.Dataset) -> xr.Dataset:
    """Return season, latitude and longitude as sines and cosines of angles: float32, (n, 2)."""
    angles: dict[str, xr.DataArray] = {
        "season": 2 * np.pi * data["time"].dt.dayofyear / 365.25,
        "latitude": data["lat"] * (np.pi / 180),
        "longitude": data["lon"] * (np.pi / 180),
    }
    points = {
        name: np.stack([np.sin(angle.values), np.cos(angle.values)], axis=1).astype(np.float32)
        for name, angle in angles.items()
    }
    return xr.Dataset({name: ((*angles[name].dims, "part"), at) for name, at in points.items()})


def is_circle(longitudes: np.ndarray) -> bool:
    """Return whether evenly spaced longitudes go all the way round.

    Examples
    --------
    >>> is_circle(np.arange(0, 360, 2.5)), is_circle(np.arange(0, 180, 2.5))
    (True, False)
    """
    steps = np.diff(longitudes)
    return bool(
        len(steps)
        and np.allclose(steps, steps[0])
        and np.isclose(abs(steps[0]) * (len(steps) + 1), 360)
    )
