"""The image pipeline, run as a person runs it, on a few made-up pictures."""

import gzip
import os
import struct

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("PIL", reason="needs Pillow: dbdask[images]")

from PIL import Image

import dbdask
from pipelines import fashion, idx, picture_files, picture_store
from pipelines.image_networks import default_stages, local_network
from pipelines.images import main
from pipelines.picture_plots import confusion, mosaic
from pipelines.schedules import Falling

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def write_idx(path, values):
    """Write an array as an idx file, compressed if its name says so."""
    header = bytes([0, 0, CODES[values.dtype.name], values.ndim])
    header += struct.pack(f">{values.ndim}i", *values.shape)
    content = header + values.astype(values.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def bars(count, seed, side=12):
    """Make pictures of a bright bar that lies (0), stands (1) or is not there (2), and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pictures = rng.integers(0, 80, (count, side, side))
    for picture, label in zip(pictures, labels, strict=True):
        place = rng.integers(2, side - 2)
        if label == 0:
            picture[place] += 150
        if label == 1:
            picture[:, place] += 150
    return pictures.astype(np.uint8), labels.astype(np.uint8)


def write_mnist(folder, train, held_out, ending=".gz"):
    """Write bars in the layout of MNIST."""
    folder.mkdir()
    for name, count, seed in (("train", train, 0), ("t10k", held_out, 1)):
        pictures, labels = bars(count, seed)
        write_idx(folder / f"{name}-images-idx3-ubyte{ending}", pictures)
        write_idx(folder / f"{name}-labels-idx1-ubyte{ending}", labels)


# idx files


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_in_blocks(tmp_path, dtype, ending):
    values = np.arange(7 * 2 * 3).reshape(7, 2, 3).astype(dtype)
    path = tmp_path / f"values-idx{ending}"
    write_idx(path, values)
    assert idx.header_of(path).shape == (7, 2, 3)
    found = list(idx.blocks(path, 1, 6, 2))
    assert [len(block) for block in found] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(found), values[1:6])


def test_a_part_of_idx_pictures_has_the_names_of_its_own(tmp_path):
    write_mnist(tmp_path / "bars", 20, 5, ending="")
    sets = idx.sets_of(tmp_path / "bars", ["lying", "standing", "nothing"])
    assert sets.classes == ("lying", "standing", "nothing")
    assert len(sets.train) == 20 and sets.train.shape == (12, 12, 1)
    (batch,) = sets.train.part(10, 20).part(2, 5).batches(10)
    pictures, labels = bars(20, 0)
    np.testing.assert_array_equal(batch.pixels[..., 0], pictures[12:15])
    np.testing.assert_array_equal(batch.labels, labels[12:15])
    assert batch.names[0] == "train-images-idx3-ubyte[12]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not in idx format"),
        (b"\x1f\x8b\x08\x00junk", "is not in idx format"),
        (b"\0\0\x07\x01\0\0\0\x01a", "is not in idx format"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends before its 3 dimensions"),
        (b"\0\0\x08\x01\0\0\0\x09abc", "ends before the 9 entries"),
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(idx.blocks(path, 0, 9, 9))


def test_a_file_that_is_not_packed_though_its_name_says_so_is_named(tmp_path):
    path = tmp_path / "labels-idx1-ubyte.gz"
    path.write_bytes(b"\0\0\x08\x01\0\0\0\x09")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        idx.header_of(path)


def test_files_that_do_not_belong_together_are_named(tmp_path):
    folder = tmp_path / "bars"
    write_mnist(folder, 9, 3)
    with pytest.raises(ValueError, match="must be 3 names of classes, got 2"):
        idx.sets_of(folder, ["a", "b"])
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(8, np.uint8))
    with pytest.raises(ValueError, match="a whole number for each of the 9 pictures"):
        idx.sets_of(folder)
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((9, 4), np.uint8))
    with pytest.raises(ValueError, match="must hold bytes of .pictures, rows, columns."):
        idx.sets_of(folder)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="idx file of images .* t10k or test"):
        idx.find(folder, idx.HELD_OUT, "images")


# Files of pictures


def half_red(mode):
    """Return a picture of 30 x 20 in a mode: left half dark, right half bright, red if it can."""
    values = np.zeros((20, 30, 3), np.uint8)
    values[:, 15:] = (255, 255, 255) if mode in GREY else (255, 0, 0)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(values[..., 0].astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    return Image.fromarray(values).convert(mode)


GREY = ("1", "L", "I;16", "I", "F", "LA")
FORMATS = {
    "1": "png",
    "L": "png",
    "LA": "png",
    "I;16": "png",
    "I": "tiff",
    "F": "tiff",
    "P": "gif",
    "RGB": "png",
    "RGBA": "webp",
    "CMYK": "tiff",
    "YCbCr": "tiff",
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", FORMATS)
def test_a_picture_of_any_mode_is_a_square_of_its_middle(tmp_path, mode, channels):
    path = tmp_path / f"picture.{FORMATS[mode]}"
    options = {"lossless": True} if FORMATS[mode] == "webp" else {}
    half_red(mode).save(path, **options)
    found = picture_files.read_square(path, 10, channels)
    assert found.shape == (10, 10, channels) and found.dtype == np.uint8
    left, right = found[:, :4].reshape(-1, channels), found[:, 6:].reshape(-1, channels)
    red = (255, 255, 255) if mode in GREY else (255, 0, 0)
    bright = red if channels == 3 else (255,) if mode in GREY else (76,)
    np.testing.assert_allclose(left, 0, atol=3)
    np.testing.assert_allclose(right, np.broadcast_to(bright, right.shape), atol=3)


def test_what_is_transparent_becomes_white(tmp_path):
    values = np.zeros((8, 8, 4), np.uint8)
    values[:, 4:, 3] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    palette = Image.fromarray(np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8))
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    for name in ("a.png", "b.png"):
        found = picture_files.read_square(tmp_path / name, 8, 3)
        assert (found[:, :4] == 255).all() and (found[:, 4:] == 0).all()


def test_a_photograph_is_turned_as_the_camera_was(tmp_path):
    values = np.zeros((40, 40, 3), np.uint8)
    values[:20] = 255
    picture = Image.fromarray(values)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter: the top is the right
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = picture_files.read_square(tmp_path / "a.jpg", 8, 1)[..., 0]
    assert (found[:, :3] < 30).all() and (found[:, 5:] > 225).all()


def write_folder(folder, per_class, side=16):
    """Write bars as pictures of several formats and sizes, a folder for each class."""
    pictures, labels = bars(3 * 4 * per_class, 2, side)
    for label, name in enumerate(("lying", "standing", "nothing")):
        (folder / name).mkdir(parents=True)
        for number, values in enumerate(pictures[labels == label][:per_class]):
            ending = ("png", "jpg", "bmp")[number % 3]
            picture = Image.fromarray(values).resize((side + number % 5, side + 2))
            picture.save(folder / name / f"{number}.{ending}")


def test_classes_are_folders_and_the_order_depends_on_the_seed_only(tmp_path):
    write_folder(tmp_path / "all", 10)
    (tmp_path / "all" / ".hidden").mkdir()
    sets = picture_files.sets_of(tmp_path / "all", 12, 3, 0.2, 7)
    assert sets.classes == ("lying", "nothing", "standing")
    assert (len(sets.train), len(sets.held_out)) == (24, 6)
    files = set(sets.train.files) | set(sets.held_out.files)
    assert len(files) == 30
    for name, label in zip(sets.train.files, sets.train.labels, strict=True):
        assert name.split("/")[0] == sets.classes[label]
    assert sets == picture_files.sets_of(tmp_path / "all", 12, 3, 0.2, 7)
    assert sets != picture_files.sets_of(tmp_path / "all", 12, 3, 0.2, 8)


def test_a_folder_says_what_is_held_out(tmp_path):
    write_folder(tmp_path / "data" / "train", 4)
    write_folder(tmp_path / "data" / "val", 2)
    sets = picture_files.sets_of(tmp_path / "data", 12, 1, 0.5, 0)
    assert all(name.startswith("train/") for name in sets.train.files)
    assert all(name.startswith("val/") for name in sets.held_out.files)
    (tmp_path / "data" / "val" / "crooked").mkdir()
    with pytest.raises(ValueError, match=r"crooked is of no class to train on; they are lying"):
        picture_files.sets_of(tmp_path / "data", 12, 1, 0.5, 0)


def test_a_folder_of_another_layout_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder of pictures per class"):
        picture_files.sets_of(tmp_path / "none", 12, 1, 0.5, 0)
    with pytest.raises(FileNotFoundError, match="must hold a folder of pictures for each class"):
        picture_files.sets_of(tmp_path, 12, 1, 0.5, 0)
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match="two classes at least"):
        picture_files.sets_of(tmp_path, 12, 1, 0.5, 0)
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match="hold no files"):
        picture_files.sets_of(tmp_path, 12, 1, 0.5, 0)


# The store


def test_copies_are_mirrored_or_shifted_a_little():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (50, 14, 14, 2)).astype(np.uint8)
    varied = picture_store.vary(pictures, rng)
    seen = set()
    for before, after in zip(pictures, varied, strict=True):
        padded = np.pad(before, ((1, 1), (1, 1), (0, 0)), mode="edge")
        matches = {
            (row, column, mirrored)
            for row in range(3)
            for column in range(3)
            for mirrored in (False, True)
            if np.array_equal(
                after[:, ::-1] if mirrored else after, padded[row : row + 14, column : column + 14]
            )
        }
        assert len(matches) == 1
        seen |= matches
    assert len(seen) > 12


def test_broken_files_leave_no_gaps_in_the_store(tmp_path, threads_client, monkeypatch):
    monkeypatch.setattr(picture_store, "MOST_ROWS", 8)
    monkeypatch.setattr(picture_store, "LEAST_ROWS", 8)
    write_folder(tmp_path / "all", 20)
    broken = [f"lying/{number}.png" for number in (0, 3, 6, 9, 12)]
    for name in broken:
        (tmp_path / "all" / name).write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    whole = tmp_path / "all" / "standing" / "1.jpg"
    whole.write_bytes(whole.read_bytes()[:300])  # cut short
    (tmp_path / "all" / "nothing" / "notes.txt").write_text("these show nothing")
    sets = picture_files.sets_of(tmp_path / "all", 12, 3, 0.1, 0)
    pictures = sets.train
    wanted = {*broken, "standing/1.jpg", "nothing/notes.txt"} & set(pictures.files)
    written = picture_store.write(threads_client, pictures, tmp_path / "a", sets.classes, 2)
    assert {name for name, _ in written.broken} == wanted and len(wanted) > 4
    stored = xr.open_zarr(tmp_path / "a", consolidated=False).load()
    assert stored.sizes["image"] == written.pictures == 2 * (len(pictures) - len(wanted))
    names, counts = np.unique(stored["file"].values.astype(object), return_counts=True)
    assert set(names) == set(pictures.files) - wanted and (counts == 2).all()
    for name, label in zip(stored["file"].values, stored["label"].values, strict=True):
        assert name.split("/")[0] == sets.classes[label]
    first = {}
    for name, pixels in zip(stored["file"].values, stored["pixels"].values, strict=True):
        first.setdefault(name, []).append(pixels)
    for name, both in first.items():
        square = picture_files.read_square(tmp_path / "all" / name, 12, 3)
        assert any(np.array_equal(square, pixels) for pixels in both)


def test_where_nothing_can_be_read_the_reason_is_given(tmp_path, threads_client):
    for name in ("one", "two"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "a.png").write_text("no picture")
    pictures = picture_files.sets_of(tmp_path / "all", 12, 3, 0.5, 0).train
    with pytest.raises(ValueError, match="none of the 1 pictures .*cannot identify image file"):
        picture_store.write(threads_client, pictures, tmp_path / "a", ("one", "two"))


# What is drawn, and what is trained


def test_a_confusion_counts_every_picture_once():
    counts = confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0]), 4)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_lie_side_by_side(channels):
    weights = np.zeros((2, 3, 4, 5, channels))
    weights[1, 2, 0, 0] = 1.0
    shown = mosaic(weights)
    assert shown.shape == (2 * 5, 3 * 6, channels)
    assert (shown[5, 12] == 1.0).all() and (shown[0, 0] == 0.5).all()


@pytest.mark.parametrize("side", [12, 16, 20, 28, 32, 40, 64, 76, 100])
def test_there_is_a_network_for_every_size(side):
    network = local_network((side, side, 3), default_stages(side), 5)
    assert network.output_shape == (5,)
    kinds = [type(stage.layer).__name__ for stage in network.stages]
    assert kinds == ["LocallyConnected", "L2Pool", "LocalContrastNorm"] * 3 + ["Dense"]


def test_a_rate_falls_to_a_hundredth():
    rates = [Falling(0.5, 10)(step) for step in range(12)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.5 and rates[10] == rates[11] == pytest.approx(0.005)


def run(client, folder, *arguments):
    quick = ["--stages", "4x3", "6x2", "--epochs", "3", "--optimizer", "adagrad:0.1"]
    common = ["--scheduler", client.scheduler.address, "--batch-size", "32", *quick]
    assert main([*common, "--output", str(folder / "out"), *arguments]) == 0
    return folder / "out"


def test_from_idx_files_to_predictions_in_two_parts(tmp_path, process_client, capsys):
    write_mnist(tmp_path / "bars", 320, 80)
    names = ["--class-names", "lying bar", "standing bar", "nothing"]
    output = run(
        process_client, tmp_path, "--idx", str(tmp_path / "bars"), "--partitions", "2", *names
    )
    said = capsys.readouterr().out
    assert "Held-out accuracy, locally connected" in said and "640 pictures (3 classes)" in said
    predicted = xr.open_zarr(output / "classes.zarr", consolidated=False)
    truth = xr.open_zarr(output / "held_out.zarr", consolidated=False)["label"]
    assert float((predicted["label"] == truth).mean()) > 0.9
    np.testing.assert_array_equal(
        predicted["class_name"], np.array(["lying bar", "standing bar", "nothing"])[predicted.label]
    )
    assert predicted["file"].values[3] == "t10k-images-idx3-ubyte.gz[3]"
    for name in ("confusion", "filters", "learning_curve"):
        assert (output / f"{name}.png").stat().st_size > 10_000
    result = dbdask.load(output / "model.zarr")
    assert result.status.ok and "seconds_exchanging" in result.history
    again = result.predict(output / "held_out.zarr")
    np.testing.assert_array_equal(again.values, predicted["label"].values)


@pytest.mark.slow
def test_from_a_folder_of_pictures_beside_a_dense_network(tmp_path, process_client, capsys):
    write_folder(tmp_path / "all", 120)
    (tmp_path / "all" / "lying" / "0.png").write_bytes(b"no picture")
    arguments = ["--folder", str(tmp_path / "all"), "--size", "12", "--grey", "--dense", "1x16"]
    output = run(process_client, tmp_path, *arguments)
    said = capsys.readouterr().out
    assert "skipped 1 of 360 files" in said and "lying/0.png: cannot identify" in said
    assert (output / "broken.txt").read_text().startswith("lying/0.png\t")
    scores = [
        float(line.split(":")[1].split("%")[0])
        for line in said.splitlines()
        if line.startswith("Held-out accuracy")
    ]
    assert len(scores) == 2 and scores[0] > 80


# Fashion-MNIST, and flags


def program(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_package_is_downloaded_once_into_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    program(tmp_path / "bin", "apt-get", f'echo "$@" >> {tmp_path}/asked; echo > "$2_1_all.deb"')
    program(
        tmp_path / "bin",
        "dpkg-deb",
        f'mkdir -p "$3/{fashion.WITHIN}"; cp "$2" "$3/{fashion.WITHIN}"',
    )
    found = fashion.folder(tmp_path / "not installed")
    assert found == fashion.cache() and [path.name for path in found.iterdir()]
    assert "downloading" in capsys.readouterr().out
    assert fashion.folder(tmp_path / "not installed") == found
    assert (tmp_path / "asked").read_text() == "download dataset-fashion-mnist\n"
    assert [path.name for path in found.parent.iterdir()] == ["fashion-mnist"]


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion.folder(tmp_path / "not installed")
    program(tmp_path / "bin", "apt-get", "echo E: no such package >&2; exit 100")
    with pytest.raises(FileNotFoundError, match="failed: E: no such package"):
        fashion.folder(tmp_path / "not installed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "big"], "--stages must be MAPSxPATCH"),
        (["--optimizer", "newton:1"], "--optimizer must be one of"),
        (["--copies", "0"], "--copies must be at least 1, got 0"),
        (["--held-out", "1"], "--held-out must be between 0 and 1"),
        (["--dense", "wide"], "--layers must be COUNTxUNITS"),
        (["--idx", "/nowhere"], "/nowhere must hold an idx file of images"),
        (["--folder", "/nowhere"], "/nowhere must be a folder of pictures"),
    ],
)
def test_wrong_flags_are_named_before_work_begins(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_stages_that_do_not_fit_the_pictures_are_named():
    with pytest.raises(SystemExit, match="leaves nothing of pictures of 12 x 12"):
        local_network((12, 12, 1), ("4x5", "4x5"), 3)
