"""The ways in which a stored dataset is given to `Examples`: each call opens it anew."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .kinds import choose
from .plan import Plan
from .writing import RAW, as_dataset, left_over_encoding, write

WAYS = ("path", "store", "lazy", "dask", "loaded", "undecoded", "fill is a value")
UNDECODED = {"undecoded": {"mask_and_scale": False}, "fill is a value": {}}


@dataclass
class Giver:
    """A stored dataset, and the way in which it is opened."""

    plan: Plan
    storage: str
    way: str
    folder: Path
    blocks: dict[str, Any] = field(default_factory=dict)
    encodings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the storage and the way in words."""
        return f"{self.storage}, given as {self.way}, blocks {self.blocks or 'as stored'}"

    @property
    def by_path(self) -> bool:
        """Whether the store itself is given, and means what it declares."""
        return self.way in ("path", "store")

    @property
    def zarr_path(self) -> Path:
        """Where the Zarr group is, if there is one."""
        return self.folder / "data.zarr"

    def open(self) -> Any:
        """Return the data as it is given: a path, a store, or a Dataset that nobody has seen."""
        if self.way == "path":
            return str(self.zarr_path)
        if self.way == "store":
            return self._store()
        return self.dataset()

    def _store(self) -> Any:
        if self.storage == "kerchunk":
            from fsspec.implementations.reference import ReferenceFileSystem

            system = ReferenceFileSystem(
                fo=str(self.folder / "references.json"),
                remote_protocol="file",
                remote_options={"asynchronous": True},
                asynchronous=True,
            )
            return zarr.storage.FsspecStore(system, read_only=True)
        return zarr.storage.LocalStore(self.zarr_path, read_only=True)

    def dataset(self) -> xr.Dataset:
        """Open the Dataset."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.storage in ("memory", "blocks"):
                dataset = self._in_memory()
            elif self.storage.startswith("netCDF"):
                engine = "scipy" if self.storage == "netCDF 3" else "h5netcdf"
                dataset = xr.open_dataset(
                    self.folder / "data.nc", engine=engine, chunks=self._chunks(), **self._more()
                )
            else:
                dataset = self._open_zarr()
            return dataset.load() if self.way == "loaded" else dataset

    def _open_zarr(self) -> xr.Dataset:
        more = self._more()
        if self.way == "fill is a value":
            more = {"use_zarr_fill_value_as_mask": False}
        if self.storage != "kerchunk":
            return xr.open_zarr(self.zarr_path, chunks=self._chunks(), consolidated=False, **more)
        options = {"fo": str(self.folder / "references.json"), "remote_protocol": "file"}
        return xr.open_dataset(
            "reference://",
            engine="zarr",
            chunks=self._chunks(),
            backend_kwargs={"storage_options": options, "consolidated": False},
            **more,
        )

    def _chunks(self) -> dict[str, int] | None:
        return self.blocks if self.way == "dask" else None

    def _more(self) -> dict[str, Any]:
        return {"mask_and_scale": False} if self.way == "undecoded" else {}

    def _in_memory(self) -> xr.Dataset:
        dataset = as_dataset(self.plan)
        if self.storage == "blocks":
            dataset = dataset.chunk(self.blocks)
        for name, encoding in self.encodings.items():
            dataset[name].encoding = dict(encoding)
        return dataset


def draw_giver(rng: np.random.Generator, plan: Plan, storage: str, folder: Path) -> Giver:
    """Write the plan and draw the way in which it is given."""
    if storage not in ("memory", "blocks"):
        others = (storage, "xarray v3", "netCDF 4")  # not every format holds every dtype
        storage = next((one for one in others if write(plan, one, folder, rng)), "memory")
    if storage in ("memory", "blocks"):
        giver = Giver(plan, storage, "memory", folder, _blocks(rng, plan))
        for column in plan.columns:
            if rng.random() < 0.3:
                giver.encodings[column.name] = left_over_encoding(rng, column)
        return giver
    weights = [2, 1, 3, 3, 2, 0.7, 0.7 if storage in RAW else 0]
    if storage.startswith("netCDF"):
        weights[:2] = 0, 0
    if storage == "kerchunk":
        weights[0] = 0
    way = choose(rng, WAYS, weights)
    blocks = choose(rng, ({}, {}, {}, _blocks(rng, plan))) if way == "dask" else {}
    return Giver(plan, storage, way, folder, blocks)


def _blocks(rng: np.random.Generator, plan: Plan) -> dict[str, Any]:
    """Draw blocks of Dask: regular or ragged, some of length 0.

    A dimension of one element has none of length 0: broadcast against them, Dask computes values
    of another shape than it promises.
    """
    found: dict[str, Any] = {}
    for dim, size in plan.sizes.items():
        if rng.random() < 0.5 or size == 1:
            found[dim] = int(rng.integers(1, size + 1))
        else:
            cuts = np.sort(rng.integers(0, size + 1, 3))
            found[dim] = tuple(np.diff([0, *cuts, size]).tolist())
    return found
