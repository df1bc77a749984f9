"""Winds: eleven years of monthly winds over the whole globe, and the relief below them.

The files are those of the Debian package ferret-datasets (public domain): winds at the sea surface
from the United States Navy's analyses, 1982 to 1992, on a grid of 2.5 degrees.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import xarray as xr

from pipelines.command_line import say

PACKAGE = "ferret-datasets"
INSIDE = Path("usr/share/ferret-vis/data")
WINDS, RELIEF = "monthly_navy_winds.cdf", "etopo60.cdf"
AXES = {
    WINDS: {"TIME": "time", "FNOCY": "lat", "FNOCX": "lon"},
    RELIEF: {"ETOPO60Y": "lat", "ETOPO60X": "lon"},
}


def default_cache() -> Path:
    """Return the folder in which the package's files are kept for the next run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dbdask" / PACKAGE


def obtain(cache: Path, installed: Path = Path("/") / INSIDE) -> Path:
    """Return a folder that holds the winds and the relief.

    The folder is that of the installed package, else the cache, which is filled from Debian's
    archive if it is empty.

    Raises
    ------
    FileNotFoundError
        The files are in neither folder, and the package cannot be fetched; the message has the
        remedy.
    """
    for folder in (installed, cache):
        if all((folder / name).exists() for name in (WINDS, RELIEF)):
            say(f"the winds are in {folder}")
            return folder
    say(f"fetching the Debian package {PACKAGE} (28 MB) for the winds")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        unpacked = _fetch(Path(scratch)) / INSIDE
        for name in (WINDS, RELIEF):
            os.replace(unpacked / name, cache / name)
    say(f"the winds are in {cache}, and stay there for the next run")
    return cache


def _fetch(scratch: Path) -> Path:
    """Return the folder into which the package was unpacked; nothing is installed."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise _cannot_be_had(f"{missing[0]} is not on this machine")
    try:
        _call("apt-get", "download", PACKAGE, folder=scratch)
        packed = next(scratch.glob(f"{PACKAGE}_*.deb"))
        _call("dpkg-deb", "-x", packed.name, "unpacked", folder=scratch)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise _cannot_be_had(f"{error.cmd[0]} says: {last}") from error
    return scratch / "unpacked"


def _call(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _cannot_be_had(reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"the winds cannot be had, because {reason}: install the Debian package {PACKAGE} "
        f"(`apt-get install {PACKAGE}`, after `apt-get update`), or give --winds the folder that "
        f"holds {WINDS} and {RELIEF}, or give your own --store"
    )


def read(folder: Path, name: str) -> xr.Dataset:
    """Return one of the files, in memory, with its axes named time, lat and lon.

    Raises
    ------
    FileNotFoundError
        The folder does not hold the file.
    """
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {name}: it is in the Debian package {PACKAGE}")
    with xr.open_dataset(path, engine="scipy") as stored:
        return stored.load().rename(AXES[name])


def winds(folder: Path) -> xr.Dataset:
    """Return UWND and VWND, eastward and northward, in m/s: float32, (132, 73, 144)."""
    found = read(folder, WINDS)[["UWND", "VWND"]]
    for name, direction in {"UWND": "eastward", "VWND": "northward"}.items():
        found[name].attrs = {"long_name": f"{direction} wind", "units": "m/s"}
    return found


def relief(folder: Path) -> xr.DataArray:
    """Return the height of the ground above the sea in m, negative below: float32, (180, 360)."""
    return read(folder, RELIEF)["ROSE"]


def ocean(heights: xr.DataArray, lat: xr.DataArray, lon: xr.DataArray) -> xr.DataArray:
    """Return whether the ground at each cell of a grid is below the sea: bool, (lat, lon).

    Longitudes may begin anywhere; beyond the outermost cells of the relief, these stand.

    Examples
    --------
    >>> coords = {"lat": [-45.0, 45.0], "lon": [0.0, 90.0, 180.0, 270.0]}
    >>> heights = xr.DataArray([[-9.0, 9, -9, 9], [9, 9, -9, -9]], coords, ("lat", "lon"))
    >>> lon = xr.DataArray([-90.0, 0.0], dims="lon")
    >>> ocean(heights, heights["lat"], lon).values
    array([[False,  True],
           [ True, False]])
    """
    east = heights["lon"].min() + (lon - heights["lon"].min()) % 360
    nearest = heights.sel(lat=lat, lon=east, method="nearest")
    return (nearest < 0).drop_vars(["lat", "lon"]).transpose("lat", "lon")
