"""The checkpoint's format: only what is committed counts."""

import numpy as np
import pytest

from dbdask.errors import CheckpointError
from dbdask.storage import checkpoint, sealed


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


@pytest.fixture
def crowded(tmp_path):
    """A checkpoint with snapshots that were committed late or never."""
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {})
    values = np.zeros(10, np.float32)
    groups = [
        write(path, 1, values, run="late"),
        write(path, 2, values, commit=False),
        write(path, 2, values, run="another"),
        write(path, 3, values),
        write(path, 4, values, commit=False),
    ]
    return path, groups


def below(path, number):
    return [group for group in checkpoint.snapshots(path) if checkpoint.is_older(group, number)]


def test_all_below_a_committed_snapshot_goes_the_lowest_first(crowded, monkeypatch):
    path, groups = crowded
    delete, order = checkpoint.delete, []

    def watched(path, group):
        delete(path, group)
        order.append(group)
        assert checkpoint.latest(path).number == 3

    monkeypatch.setattr(checkpoint, "delete", watched)
    checkpoint.delete_all(path, below(path, 3))
    assert order == sorted(groups[:3])
    assert [name for name in sealed.children(path) if name in groups] == groups[3:]
    assert checkpoint.attributes(path) == {}


def test_one_that_cannot_be_deleted_keeps_no_other_there(crowded, monkeypatch, caplog):
    path, groups = crowded
    delete = checkpoint.delete

    def fail(path, group):
        if group == groups[0]:
            raise OSError("locked")
        delete(path, group)

    monkeypatch.setattr(checkpoint, "delete", fail)
    checkpoint.delete_all(path, below(path, 3))
    assert f"{groups[0]} could not be deleted: OSError('locked')" in caplog.text
    assert [n for n in sealed.children(path) if n in groups] == [groups[0], *groups[3:]]


def test_a_commit_into_a_snapshot_that_was_deleted_does_not_count(tmp_path):
    path = str(tmp_path / "run.zarr")
    checkpoint.create(path, {})
    late = write(path, 1, np.zeros(10, np.float32), run="zzz", commit=False)
    checkpoint.delete(path, late)
    write(path, 1, np.ones(10, np.float32), run="aaa", commit=False)
    checkpoint.commit(path, late, {})
    with pytest.raises(CheckpointError, match="deleted before its commit came"):
        checkpoint.latest(path)  # what is to be deleted with it, a person decides
    ours = checkpoint.name_of(1, 0, "aaa")
    checkpoint.commit(path, ours, {"number": 1})
    assert checkpoint.latest(path).group == ours


def test_the_latest_snapshot_knows_the_highest_number_that_was_begun(crowded):
    latest = checkpoint.latest(crowded[0])
    assert (latest.number, latest.highest) == (3, 4)


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
