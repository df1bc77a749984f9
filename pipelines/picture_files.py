"""A folder of pictures per class, the layout of ImageNet: files of any size, mode and format."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.picture_sources import Batch, Sets

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN, HELD_OUT = ("train",), ("val", "test")
WIDE_MODES = {"I;16": 65_535, "I;16L": 65_535, "I;16B": 65_535, "I;16N": 65_535, "I": 65_535}
"""Modes of more than 8 bits a channel, and their white."""


@dataclass(frozen=True)
class FolderPictures:
    """Files with a label each, to be read as squares."""

    folder: Path
    files: tuple[str, ...]
    """Below the folder."""
    labels: tuple[int, ...]
    side: int
    """Rows, and columns, of the squares."""
    channels: int
    """3 for red, green and blue, 1 for grey."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of every picture as it is read."""
        return self.side, self.side, self.channels

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> "FolderPictures":
        """Return the pictures from `start` up to `stop`."""
        return self._of(self.files[start:stop], self.labels[start:stop])

    def drawn(self, order: np.ndarray) -> "FolderPictures":
        """Return the pictures at these positions, in their order."""
        return self._of(
            tuple(self.files[position] for position in order),
            tuple(self.labels[position] for position in order),
        )

    def _of(self, files: tuple[str, ...], labels: tuple[int, ...]) -> "FolderPictures":
        return FolderPictures(self.folder, files, labels, self.side, self.channels)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all pictures in order, `size` files at a time, the broken ones left out."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)._read()

    def _read(self) -> Batch:
        found = Batch(np.empty((len(self), *self.shape), np.uint8), np.empty(0, np.int32), [])
        labels: list[int] = []
        for name, label in zip(self.files, self.labels, strict=True):
            try:
                found.pixels[len(labels)] = read_square(
                    self.folder / name, self.side, self.channels
                )
            except Exception as error:  # of any kind: so many are the decoders of broken files
                found.broken.append((name, str(error) or type(error).__name__))
                continue
            labels.append(label)
            found.names.append(name)
        found.pixels, found.labels = found.pixels[: len(labels)], np.array(labels, np.int32)
        return found


def read_square(path: Path, side: int, channels: int) -> np.ndarray:
    """Read a picture, turned as its camera was, scaled to fill a square, and cropped around its
    middle: uint8 of (side, side, channels).

    Transparent parts become white.

    Raises
    ------
    Exception
        The file is no picture, is cut short, or is too large to be unpacked. Pillow's decoder of
        the format decides the type.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as file:
                file.draft(None, (2 * side, 2 * side))  # a JPEG file is unpacked no larger
                picture = in_colours(ImageOps.exif_transpose(file), channels)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from error
    square = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(side, side, channels)


def in_colours(picture: "Image", channels: int) -> "Image":
    """Return a picture of any mode as RGB, or as grey for one channel, with 8 bits each."""
    from PIL import Image

    if picture.mode in WIDE_MODES or picture.mode == "F":
        picture = _narrowed(picture)
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        picture = Image.alpha_composite(white, clear)
    return picture.convert("RGB" if channels == 3 else "L")


def _narrowed(picture: "Image") -> "Image":
    """Return a picture of one channel with 8 bits; floats are black at 0 and white at 1."""
    from PIL import Image

    values = np.asarray(picture).astype(np.float64) / WIDE_MODES.get(picture.mode, 1)
    scaled = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1))
    return Image.fromarray(scaled.astype(np.uint8))


def class_folders(folder: Path) -> list[Path]:
    """Return the folders of the classes, sorted by name.

    Raises
    ------
    FileNotFoundError
        There are none.
    """
    found = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not found:
        raise FileNotFoundError(f"{folder} must hold a folder of pictures for each class")
    return found


def files_of(
    folder: Path, above: Path, classes: tuple[str, ...], side: int, channels: int
) -> FolderPictures:
    """Return all files in the folders of the classes, those of a class one after the other.

    Parameters
    ----------
    folder
        Holds a folder of pictures for each class.
    above
        The names of the pictures begin below it.
    classes
        The names of the classes that there are.
    side, channels
        Of the squares that are read.

    Raises
    ------
    ValueError
        A folder is of no known class, or there is no file.
    """
    files: list[str] = []
    labels: list[int] = []
    for of_class in class_folders(folder):
        if of_class.name not in classes:
            raise ValueError(f"{of_class} is of no class to train on; they are {_some(classes)}")
        found = sorted(
            path.relative_to(above).as_posix()
            for path in of_class.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        files += found
        labels += [classes.index(of_class.name)] * len(found)
    if not files:
        raise ValueError(f"the folders of {folder} hold no files")
    return FolderPictures(above, tuple(files), tuple(labels), side, channels)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def sets_of(folder: Path, side: int, channels: int, share: float, seed: int) -> Sets:
    """Return the pictures of a folder per class, in an order that the seed draws.

    Parameters
    ----------
    folder
        Holds the folders of the classes; or `train` and one of `val` or `test`, which hold them.
    side, channels
        Of the squares that are read.
    share
        Of the pictures that are held out, if the folder does not say which.
    seed
        Of the order, and of what is held out.

    Raises
    ------
    FileNotFoundError, ValueError
        The folder has another layout.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of pictures per class, and is none")
    rng = np.random.default_rng(seed)
    above = folder.absolute()
    to_train, to_hold = (_first(above, names) for names in (TRAIN, HELD_OUT))
    classes = tuple(path.name for path in class_folders(to_train or above))
    if len(classes) < 2:
        raise ValueError(f"{to_train or above} must hold two classes at least, got {classes}")
    if to_train and to_hold:
        train, held_out = (
            files_of(one, above, classes, side, channels) for one in (to_train, to_hold)
        )
        return Sets(_shuffled(train, rng), _shuffled(held_out, rng), classes)
    everything = _shuffled(files_of(to_train or above, above, classes, side, channels), rng)
    count = max(1, round(share * len(everything)))
    if count >= len(everything):
        raise ValueError(f"{folder} has {len(everything)} files: too few to hold out {share:g}")
    return Sets(everything.part(count, len(everything)), everything.part(0, count), classes)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _shuffled(pictures: FolderPictures, rng: np.random.Generator) -> FolderPictures:
    return pictures.drawn(rng.permutation(len(pictures)))
