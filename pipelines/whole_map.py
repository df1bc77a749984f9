"""Whole maps: a small convolutional network of PyTorch that forecasts all cells at once."""

import torch

import dbdask
from dbdask.torch import TorchModel
from pipelines.fields import Fields

WIDTHS = (1, 2, 4)
"""Distances between the cells that a layer's kernel sees, one for each layer."""


def nothing() -> None:
    """Do nothing, where this module, and with it PyTorch, has been imported for it."""


def maps_of(fields: Fields, window: int) -> dbdask.Examples:
    """Describe what is an example: the maps of some steps, and the surprise of the next one.

    Areas weigh the cells: those of area 0, and those that have no value, count for nothing.
    """
    return dbdask.Examples(
        fields.path,
        inputs=fields.inputs({"time": (-window, -1)}, ("season", "latitude")),
        targets=fields.names("surprise"),
        along="time",
        edges="drop",
        weights="area",
        missing="mask",
    )


class MapNetwork(torch.nn.Module):
    """Convolutions over maps, which go round the globe where the longitudes do.

    Parameters
    ----------
    variables, window
        How many variables, and how many steps of each are seen.
    lat, lon
        Cells of a map.
    circle
        Whether the last longitude is a neighbour of the first.
    channels
        Maps between two layers.
    """

    def __init__(
        self, variables: int, window: int, lat: int, lon: int, *, circle: bool, channels: int
    ) -> None:
        super().__init__()
        self.planes = variables * (window + 2)
        self.shape = lat, lon
        self.circle = circle
        counts = [self.planes + 4, channels, channels, variables]
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(given, made, 3, dilation=width)
            for given, made, width in zip(counts, counts[1:], WIDTHS, strict=False)
        )
        last = self.layers[-1]
        torch.nn.init.zeros_(last.weight)  # training starts from the expected values
        torch.nn.init.zeros_(last.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the surprise at each cell, (maps, lat, lon, variables), of joined inputs."""
        lat, lon = self.shape
        size = lat * lon
        planes, season, latitude = inputs.split([self.planes * size, 2, 2 * lat], dim=1)
        maps = torch.cat(
            [
                planes.reshape(-1, self.planes, lat, lon),
                season[:, :, None, None].expand(-1, -1, lat, lon),
                latitude.reshape(-1, lat, 2).transpose(1, 2)[..., None].expand(-1, -1, -1, lon),
            ],
            dim=1,
        )
        for number, (layer, width) in enumerate(zip(self.layers, WIDTHS, strict=True)):
            maps = layer(self._padded(maps if number == 0 else torch.relu(maps), width))
        return maps.permute(0, 2, 3, 1)

    def _padded(self, maps: torch.Tensor, width: int) -> torch.Tensor:
        """Return maps with `width` more cells on every side."""
        pad = torch.nn.functional.pad
        sides = pad(maps, (width, width, 0, 0), "circular" if self.circle else "replicate")
        return pad(sides, (0, 0, width, width), "replicate")


def model_of(fields: Fields, window: int, *, channels: int, seed: int) -> TorchModel:
    """Return the network of whole maps, with values drawn by the seed."""
    sizes = fields.open().sizes
    torch.manual_seed(seed)
    module = MapNetwork(
        len(fields.variables),
        window,
        sizes["lat"],
        sizes["lon"],
        circle=fields.circle,
        channels=channels,
    )
    return TorchModel(module, "squared")
