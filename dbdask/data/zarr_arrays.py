"""The type of an opened Zarr array, of format 2 or 3."""

from typing import Any, TypeAlias

import zarr

ZarrArray: TypeAlias = "zarr.Array[Any]"
