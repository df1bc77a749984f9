"""Files in idx format, the layout of MNIST and Fashion-MNIST, compressed by gzip or not."""

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from pipelines.picture_sources import Batch, Sets

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
TRAIN, HELD_OUT = ("train",), ("t10k", "test")


class Header(NamedTuple):
    """What an idx file holds."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Where the numbers begin, in bytes."""

    @property
    def row(self) -> int:
        """Bytes of one picture, or of one label."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def opened(path: Path) -> IO[bytes]:
    """Open an idx file, unpacked if its name ends with .gz."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def read_header(file: IO[bytes], path: Path) -> Header:
    """Read the header of an idx file, up to where the numbers begin.

    Raises
    ------
    ValueError
        The file is not in idx format.
    """
    try:
        magic = file.read(4)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not magic[3]:
        raise ValueError(
            f"{path} is not in idx format: it must begin with two zero bytes, the code of a dtype "
            f"and the number of dimensions, and begins with {magic.hex(' ')}"
        )
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"{path} ends before its {magic[3]} dimensions")
    shape = tuple(np.frombuffer(lengths, ">i4").tolist())
    return Header(np.dtype(DTYPES[magic[2]]), shape, 4 + len(lengths))


def header_of(path: Path) -> Header:
    """Return the header of an idx file."""
    with opened(path) as file:
        return read_header(file, path)


def blocks(path: Path, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Yield the entries `start` up to `stop` of an idx file, `size` of them at a time.

    Raises
    ------
    ValueError
        The file ends before them.
    """
    with opened(path) as file:
        header = read_header(file, path)
        file.seek(header.start + start * header.row)
        for first in range(start, stop, size):
            count = min(size, stop - first)
            content = file.read(count * header.row)
            if len(content) < count * header.row:
                raise ValueError(f"{path} ends before the {header.shape[0]} entries of its header")
            yield np.frombuffer(content, header.dtype).reshape(count, *header.shape[1:])


@dataclass(frozen=True)
class IdxPictures:
    """Pictures and labels in two idx files, from `first` up to `last`."""

    images: Path
    labels: Path
    shape: tuple[int, int, int]
    first: int
    last: int

    @classmethod
    def of(cls, images: Path, labels: Path) -> "IdxPictures":
        """Return all pictures of two files.

        Raises
        ------
        ValueError
            They hold something else, or do not belong together.
        """
        of_images, of_labels = header_of(images), header_of(labels)
        if of_images.dtype != np.uint8 or len(of_images.shape) not in (3, 4):
            raise ValueError(
                f"{images} must hold bytes of (pictures, rows, columns) or (pictures, rows, "
                f"columns, channels), got {of_images.dtype.name} of {of_images.shape}"
            )
        if of_labels.dtype.kind not in "iu" or of_labels.shape != of_images.shape[:1]:
            raise ValueError(
                f"{labels} must hold a whole number for each of the {of_images.shape[0]} pictures "
                f"of {images}, got {of_labels.dtype.name} of {of_labels.shape}"
            )
        rows, columns, *channels = of_images.shape[1:]
        shape = rows, columns, channels[0] if channels else 1
        return cls(images.absolute(), labels.absolute(), shape, 0, of_images.shape[0])

    def __len__(self) -> int:
        return self.last - self.first

    def part(self, start: int, stop: int) -> "IdxPictures":
        """Return the pictures from `start` up to `stop`."""
        span = self.first + start, self.first + stop
        return IdxPictures(self.images, self.labels, self.shape, *span)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all pictures in order, `size` of them at a time."""
        first = self.first
        of_both = (blocks(path, first, self.last, size) for path in (self.images, self.labels))
        for pixels, labels in zip(*of_both, strict=True):
            names = [f"{self.images.name}[{first + number}]" for number in range(len(pixels))]
            shaped = pixels.reshape(len(pixels), *self.shape)
            yield Batch(shaped, labels.astype(np.int32), names)
            first += len(pixels)


def find(folder: Path, starts: Sequence[str], what: str) -> Path:
    """Return the file of a folder whose name begins with one of `starts` and holds `what` and idx.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    found = sorted(
        path for start in starts for path in folder.glob(f"{start}*{what}*idx*") if path.is_file()
    )
    if not found:
        raise FileNotFoundError(
            f"{folder} must hold an idx file of {what} whose name begins with "
            f"{' or '.join(starts)}, such as {starts[0]}-{what}-idx"
            f"{3 if what == 'images' else 1}-ubyte.gz, and holds none"
        )
    return found[0]


def sets_of(folder: Path, classes: Sequence[str] = ()) -> Sets:
    """Return the pictures of a folder in the layout of MNIST.

    Parameters
    ----------
    folder
        Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`, each
        with .gz or without.
    classes
        Names of the classes, for the labels from 0; () takes the numbers as names.

    Raises
    ------
    FileNotFoundError, ValueError
        A file is missing, or is not as it must be.
    """
    train, held_out = (
        IdxPictures.of(find(folder, starts, "images"), find(folder, starts, "labels"))
        for starts in (TRAIN, HELD_OUT)
    )
    if train.shape != held_out.shape:
        raise ValueError(
            f"the pictures of {train.images} and {held_out.images} must have one shape, got "
            f"{train.shape} and {held_out.shape}"
        )
    count = 1 + max(_largest_label(train), _largest_label(held_out))
    if classes and len(classes) < count:
        raise ValueError(f"there must be {count} names of classes, got {len(classes)}: {classes}")
    return Sets(train, held_out, tuple(classes) or tuple(map(str, range(count))))


def _largest_label(pictures: IdxPictures) -> int:
    if not len(pictures):
        raise ValueError(f"{pictures.images} holds no pictures")
    spans = blocks(pictures.labels, pictures.first, pictures.last, 1 << 20)
    least, most = 0, 0
    for labels in spans:
        least, most = min(least, int(labels.min())), max(most, int(labels.max()))
    if least < 0:
        raise ValueError(f"the labels of {pictures.labels} must be at least 0, got {least}")
    return most
