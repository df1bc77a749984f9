"""A prediction is written to Zarr v2 and v3 and to netCDF, and read back equal."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from .comparing import Wrong

ThereAndBack = Callable[[xr.DataArray, Path], xr.DataArray]


def _zarr(zarr_format: int) -> ThereAndBack:
    def there_and_back(array: xr.DataArray, path: Path) -> xr.DataArray:
        array.to_zarr(path, zarr_format=zarr_format, consolidated=False, mode="w")
        return xr.open_dataset(path, engine="zarr", chunks=None, consolidated=False)[array.name]

    return there_and_back


def _netcdf(array: xr.DataArray, path: Path) -> xr.DataArray:
    array.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as found:
        return found[array.name].load()


WAYS: dict[str, ThereAndBack] = {"Zarr v2": _zarr(2), "Zarr v3": _zarr(3), "netCDF": _netcdf}


def check_written(lazy: xr.DataArray, computed: xr.DataArray, folder: Path) -> None:
    """Write wherever xarray can write an array like it, and compare what comes back."""
    for way, there_and_back in WAYS.items():
        name = way.replace(" ", "-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                back = there_and_back(lazy, folder / f"prediction-{name}")
            except Exception as error:  # of every kind
                if _can(there_and_back, lazy, folder / f"control-{name}"):
                    raise Wrong(f"predict: not written to {way}: {error!r}") from error
                continue
        _compare(way, back, computed)


def _can(there_and_back: ThereAndBack, array: xr.DataArray, path: Path) -> bool:
    try:
        there_and_back(_alike(array), path)
    except Exception:  # of every kind: what xarray cannot write is no case
        return False
    return True


def _alike(lazy: xr.DataArray) -> xr.DataArray:
    """Return an array of the same dtype and labels, which remembers no store."""
    values = np.full(lazy.shape, "" if lazy.dtype.kind in "UO" else 0, lazy.dtype)
    control = xr.DataArray(values, dims=lazy.dims, name=lazy.name, coords=lazy.coords)
    control = control.drop_encoding()
    return control if lazy.chunks is None else control.chunk(dict(lazy.chunksizes))


def _compare(way: str, back: xr.DataArray, computed: xr.DataArray) -> None:
    wanted = computed
    fill = computed.encoding.get("_FillValue")
    if fill is not None and fill == fill:
        wanted = computed.where(computed != fill)
    found, values = back.to_numpy(), wanted.transpose(*back.dims).to_numpy()
    if found.dtype.kind in "UO" or values.dtype.kind in "UO":
        same = np.array_equal(_texts(found), _texts(values))
    else:
        same = np.array_equal(found.astype(np.float64), values.astype(np.float64), equal_nan=True)
    if not same:
        raise Wrong(f"predict: read back from {way}: {found.ravel()[:5]}, not {values.ravel()[:5]}")
    try:
        xr.align(back, computed, join="exact")
    except ValueError as error:
        raise Wrong(f"predict: read back from {way} it is not aligned: {error}") from error


def _texts(values: np.ndarray) -> np.ndarray:
    """Return text with one sign for missing: NaN or none."""
    return np.array(["" if v != v or v is None else str(v) for v in values.ravel().tolist()])
