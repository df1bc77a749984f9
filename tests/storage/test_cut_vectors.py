"""Snapshots of a cut model: a reader sees the model's own order, whatever wrote them."""

import random
from itertools import pairwise

import numpy as np
import pytest

import dbdask
from dbdask.errors import CheckpointError
from dbdask.models.cut import even_cut
from dbdask.models.layout import cut, cut_within
from dbdask.models.partition import Partition
from dbdask.schedule import stored_chunks
from dbdask.storage import checkpoint
from dbdask.storage.cut_vectors import CutOrder


def partition(parts):
    layers = [dbdask.Dense(7, "tanh"), dbdask.Dense(5)]
    network = dbdask.Network(input_shape=4, layers=layers, loss="squared")
    return Partition(network, even_cut(network, parts))


def write(path, parts, shards, values):
    """Write the model's vector as the shards of a cut would, in any order; return the group."""
    model = partition(parts)
    slices = cut_within(model.ranges, shards)
    order = CutOrder((*(start for start, _ in slices), len(values)), tuple(model.table.segments()))
    checkpoint.create(path, {})
    group = checkpoint.name_of(1, 0, "run")
    checkpoint.begin(path, group, ["parameters"], len(values), order.chunk, order)
    vector = model.table.to_cut(values)
    numbered = list(enumerate(slices))
    random.Random(parts).shuffle(numbered)
    for number, (start, stop) in numbered:
        written = {"parameters": vector[start:stop]}
        checkpoint.write_slice(path, group, *order.stored(number), written)
    assert checkpoint.is_whole(path, group, ["parameters"], order.stored_size // order.chunk)
    checkpoint.commit(path, group, {"number": 1})
    return group


@pytest.mark.parametrize("most", [1000, 7, 1])
@pytest.mark.parametrize(("parts", "shards"), [(2, 2), (2, 5), (3, 3), (4, 9)])
def test_any_cut_reads_what_another_wrote(tmp_path, monkeypatch, parts, shards, most):
    monkeypatch.setattr(stored_chunks, "MOST_STORED", most)
    path, size = str(tmp_path / "run.zarr"), partition(1).network.parameter_count
    values = np.arange(size, dtype=np.float32)
    group = write(path, parts, shards, values)
    latest = checkpoint.latest(path)
    assert latest is not None and latest.group == group
    assert checkpoint.vector_names(path, group) == ["parameters"]
    reference = checkpoint.VectorReference(path, group)
    np.testing.assert_array_equal(reference.read(), values)
    for start, stop in [(0, 1), (3, 30), (size - 2, size), *cut(size, 4)]:
        read = checkpoint.read_slice(path, group, "parameters", start, stop)
        np.testing.assert_array_equal(read, values[start:stop])
    for others in (1, 2, 3, 5):
        other = partition(others)
        edges = [0, *(stop for _, stop in other.ranges)]
        read = [
            checkpoint.read_segments(path, group, "parameters", other.table.segments(a, b))
            for a, b in pairwise(edges)
        ]
        np.testing.assert_array_equal(np.concatenate(read), other.table.to_cut(values))


def test_a_chunk_that_was_changed_or_is_missing_is_an_error(tmp_path):
    path = tmp_path / "run.zarr"
    values = np.arange(partition(1).network.parameter_count, dtype=np.float32)
    group = write(str(path), 2, 3, values)
    reference = checkpoint.VectorReference(str(path), group)
    chunk = path / group / "parameters" / "c" / "1"
    kept = chunk.read_bytes()
    chunk.write_bytes(kept[:3] + bytes([kept[3] ^ 1]) + kept[4:])
    with pytest.raises(CheckpointError, match="damaged"):
        reference.read()
    chunk.unlink()
    assert not checkpoint.is_whole(str(path), group, ["parameters"], 3)
    with pytest.raises(CheckpointError, match="chunk 1 .* is missing"):
        reference.read()


def test_an_order_that_was_changed_is_an_error(tmp_path):
    path = tmp_path / "run.zarr"
    values = np.arange(partition(1).network.parameter_count, dtype=np.float32)
    group = write(str(path), 2, 3, values)
    header = path / group / "zarr.json"
    text = header.read_text()
    number = text.index("edges")
    place = next(i for i in range(number, len(text)) if text[i] in "123456789")
    header.write_text(text[:place] + "9" * (text[place] != "9") + text[place + 1 :])
    with pytest.raises(CheckpointError):
        checkpoint.VectorReference(str(path), group).read()


@pytest.mark.parametrize("size", [1, 6, 7, 8, 50, 99])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_slice_of_a_vector_is_whole_chunks_of_it(monkeypatch, size, count):
    monkeypatch.setattr(stored_chunks, "MOST_STORED", 7)
    slices = cut(size, count)
    chunk = stored_chunks.stored_chunk(max(stop - start for start, stop in slices))
    assert chunk <= 7
    assert all(start % chunk == 0 for start, _ in slices)
    assert [start for start, _ in slices[1:]] == [stop for _, stop in slices[:-1]]
    assert slices[-1][1] == size
