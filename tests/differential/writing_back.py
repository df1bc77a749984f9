"""A prediction is written to Zarr v2 and v3 and to netCDF, and read back equal.

All targets are written together, as they come from `predict`: lazy, with their coordinates.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

from .comparing import Wrong

Prediction = xr.DataArray | xr.Dataset
ThereAndBack = Callable[[xr.Dataset, Path], xr.Dataset]


def _zarr(zarr_format: int) -> ThereAndBack:
    def there_and_back(data: xr.Dataset, path: Path) -> xr.Dataset:
        store = MemoryStore()
        data.to_zarr(store, zarr_format=zarr_format, consolidated=False)
        return xr.open_dataset(store, engine="zarr", chunks=None, consolidated=False).load()

    return there_and_back


def _netcdf(data: xr.Dataset, path: Path) -> xr.Dataset:
    data.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as found:
        return found.load()


WAYS: dict[str, ThereAndBack] = {"Zarr v2": _zarr(2), "Zarr v3": _zarr(3), "netCDF": _netcdf}


def check_written(lazy: Prediction, computed: Prediction, folder: Path) -> list[str]:
    """Write wherever xarray can write data like it, and compare what comes back.

    Returns
    -------
    The formats that it was written to, and those that xarray itself cannot write it to: a
    MultiIndex, and coordinates of pandas' own dtypes.
    """
    data, wanted = _as_dataset(lazy), _as_dataset(computed)
    written = []
    for way, there_and_back in WAYS.items():
        name = way.replace(" ", "-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                back = there_and_back(data, folder / f"prediction-{name}")
            except Exception as error:  # of every kind
                if _control(there_and_back, data, folder / f"control-{name}") is not None:
                    raise Wrong(f"predict: not written to {way}: {error!r}") from error
                written.append(f"{way} (xarray cannot)")
                continue
            _compare(way, back, wanted)
            _compare_coords(way, back, wanted, there_and_back, folder / f"control-{name}")
        written.append(way)
    return written


def _as_dataset(prediction: Prediction) -> xr.Dataset:
    if isinstance(prediction, xr.DataArray):
        return prediction.to_dataset(name=prediction.name)
    return prediction


def _control(there_and_back: ThereAndBack, data: xr.Dataset, path: Path) -> xr.Dataset | None:
    """Return what xarray makes of data like these, which remember no store; None: it cannot."""
    alike = data.copy()
    for name, array in data.data_vars.items():
        values = np.full(array.shape, "" if array.dtype.kind in "UO" else 0, array.dtype)
        variable = xr.Variable(array.dims, values)
        alike[name] = variable if array.chunks is None else variable.chunk(dict(array.chunksizes))
    try:
        return there_and_back(alike.drop_encoding(), path)
    except Exception:  # of every kind: what xarray cannot write is no case
        return None


def _compare(way: str, back: xr.Dataset, wanted: xr.Dataset) -> None:
    """Compare the values of every target, and the indexes."""
    for name, array in wanted.data_vars.items():
        if name not in back:
            raise Wrong(f"predict: {name!r} is not there when read back from {way}")
        fill = array.encoding.get("_FillValue")
        if fill is not None and fill == fill:
            array = array.where(array != fill)
        if not _same(back[name].variable, array.variable):
            found, values = back[name].values.ravel()[:5], array.values.ravel()[:5]
            raise Wrong(f"predict: {name!r} read back from {way}: {found}, not {values}")
    try:
        xr.align(back, wanted, join="exact")
    except ValueError as error:
        raise Wrong(f"predict: read back from {way} it is not aligned: {error}") from error


def _compare_coords(
    way: str, back: xr.Dataset, wanted: xr.Dataset, there_and_back: ThereAndBack, path: Path
) -> None:
    """Compare the coordinates; what xarray changes in data without encoding, too, is its own."""
    changed = [name for name in wanted.coords if not _same_coord(back, wanted, name)]
    if not changed:
        return
    control = _control(there_and_back, wanted, path)
    for name in changed:
        if control is None or _same_coord(control, wanted, name):
            raise Wrong(f"predict: the coordinate {name!r} is changed when read back from {way}")


def _same_coord(back: xr.Dataset, wanted: xr.Dataset, name: object) -> bool:
    if name not in back.coords:
        return False
    return _same(back.coords[name].variable, wanted.coords[name].variable)


def _same(found: xr.Variable, wanted: xr.Variable) -> bool:
    """Whether two variables show the same; text and whole numbers may have another dtype."""
    if set(found.dims) != set(wanted.dims):
        return False
    one, two = found.to_numpy(), wanted.transpose(*found.dims).to_numpy()
    kinds = one.dtype.kind + two.dtype.kind
    if any(kind in "UOTS" for kind in kinds):
        return np.array_equal(_texts(one), _texts(two))
    if "m" in kinds or "M" in kinds:
        return kinds[0] == kinds[1] and np.array_equal(one, two, equal_nan=True)
    if all(kind in "iub" for kind in kinds):
        return np.array_equal(one, two)
    return np.array_equal(one.astype(np.float64), two.astype(np.float64), equal_nan=True)


def _texts(values: np.ndarray) -> np.ndarray:
    """Return text with one sign for missing: NaN or none."""
    return np.array(
        [
            "" if v is None or v != v else v.decode() if isinstance(v, bytes) else str(v)
            for v in values.ravel().tolist()
        ]
    )
