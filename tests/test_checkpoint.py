"""The checkpoint's format: only what is committed counts."""

import numpy as np
import pytest

from dbdask.errors import CheckpointError
from dbdask.numbers import checkpoint


def write(path, number, values, run="run", commit=True):
    group = checkpoint.name_of(number, 0, run)
    checkpoint.begin(path, group, ["parameters"], len(values), 4)
    for start in range(0, len(values), 4):
        part = values[start : start + 4]
        checkpoint.write_slice(path, group, start, start + len(part), {"parameters": part})
    if commit:
        checkpoint.commit(path, group, {"number": number})
    return group


def test_a_snapshot_without_its_commit_does_not_exist_for_readers(tmp_path):
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {"seed": 3})
    values = np.arange(10, dtype=np.float32)
    first = write(path, 1, values)
    write(path, 2, values + 1, commit=False)
    latest = checkpoint.latest(path)
    assert latest is not None and latest.group == first and latest.state == {"number": 1}
    np.testing.assert_array_equal(
        checkpoint.read_slice(path, first, "parameters", 3, 9), values[3:9]
    )


def test_a_late_writer_of_another_run_disturbs_nobody(tmp_path):
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {})
    ours = write(path, 1, np.zeros(10, np.float32), run="ours")
    write(path, 1, np.ones(10, np.float32), run="late", commit=False)
    assert checkpoint.read_slice(path, ours, "parameters", 0, 10).sum() == 0


def test_a_deleted_snapshot_is_gone(tmp_path):
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {})
    group = write(path, 1, np.zeros(10, np.float32))
    checkpoint.delete(path, group)
    assert checkpoint.latest(path) is None


def test_a_flipped_byte_is_an_error_not_other_numbers(tmp_path):
    path = tmp_path / "run.zarr"
    checkpoint.create(str(path), {})
    group = write(str(path), 1, np.arange(10, dtype=np.float32))
    chunk = path / group / "parameters" / "c" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[5] ^= 0xFF
    chunk.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match=r"run\.zarr.*checksum.*restore"):
        checkpoint.read_slice(str(path), group, "parameters", 0, 10)


def test_a_path_that_holds_something_else_is_named(tmp_path):
    import zarr

    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(CheckpointError, match=r"other\.zarr"):
        checkpoint.attributes(str(tmp_path / "other.zarr"))
