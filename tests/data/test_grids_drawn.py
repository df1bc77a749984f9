"""Windows, edges, cuts, overlaps, rules, weights and scaling of each variable, against a loop.

Datasets and arguments are drawn. Each example is formed by hand: a window walks from its position
one step at a time, until the data, a cut or a group ends.
"""

import itertools
import pickle
from dataclasses import dataclass, field

import dask
import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.data.sources import Piece

QUICK, LONG = range(60), range(60, 3060, 500)
ROUTES = ("memory", "dask", "lazy", "store")


@dataclass
class Drawn:
    """A dataset, what is asked of it, and which positions cuts have left."""

    along: tuple[str, ...]
    data: xr.Dataset
    inputs: dict
    targets: str
    weights: str | None
    groups: bool
    edges: dict
    missing: dict
    kept: np.ndarray  # over `along`: which positions are examples
    spans: dict = field(default_factory=dict)  # of each position, the number of its span; or -1
    lows: dict = field(default_factory=dict)  # of each position, the first that windows may see


def draw(rng):
    along = (("t",), ("t", "b"), ("b", "t"), ("t", "a", "b"))[rng.integers(0, 4)]
    sizes = {
        "t": int(rng.integers(5, 16)),
        "a": int(rng.integers(1, 4)),
        "b": int(rng.integers(2, 7)),
    }
    sizes = {dim: sizes[dim] for dim in along}
    data, inputs = xr.Dataset(), {}
    for name in ("u", "v", "w")[: rng.integers(1, 4)]:
        dims = [d for d in along if d == along[0] or rng.random() < 0.7]
        if rng.random() < 0.3 and name != "u":
            dims = dims[1:]
        dims = [str(d) for d in rng.permutation(dims + ["k"] * int(rng.random() < 0.3))]
        shape = [{**sizes, "k": 2}[dim] for dim in dims]
        values = rng.permutation(int(np.prod(shape))).reshape(shape).astype("f4") + 10
        data[name] = dims, np.where(rng.random(shape) < rng.choice([0, 0.06]), np.nan, values)
        inputs[name] = draw_window(rng, sizes)
    number = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values())).astype("f4")
    more = np.where(rng.random(number.shape) < 0.1, np.nan, number + 0.5)
    data["y"] = along, number
    data["m"] = (*along, "k"), np.stack([number, more], -1).astype("f4")
    targets = str(rng.choice(["y", "m"]))
    weighed = [d for d in (*along, *(["k"] if targets == "m" else [])) if rng.random() < 0.5]
    data["p"] = weighed, rng.integers(0, 4, [data.sizes[d] for d in weighed]).astype("f4")
    names = np.repeat(rng.permutation(40), rng.integers(1, 8, 40))[: sizes["t"]]
    data["g"] = "t", names.astype(rng.choice(["i4", "f8"]))
    groups = bool(rng.integers(0, 2))
    edges = {dim: str(rng.choice(["repeat", "drop", "wrap"])) for dim in along}
    if groups and edges["t"] == "wrap":
        edges["t"] = "repeat"
    missing = {name: str(rng.choice(["drop", "mask"])) for name in inputs}
    missing["m"] = "mask"
    kept = np.ones(list(sizes.values()), bool)
    drawn = Drawn(
        along,
        data,
        inputs,
        targets,
        "p" if rng.random() < 0.6 else None,
        groups,
        edges,
        {name: missing[name] for name in (*inputs, targets) if name in missing},
        kept,
    )
    for dim, size in sizes.items():
        drawn.spans[dim], drawn.lows[dim] = np.zeros(size, int), np.zeros(size, int)
    return drawn


def draw_window(rng, sizes):
    window = {}
    for dim, size in sizes.items():
        first, last = sorted(rng.integers(-4, 5, 2).tolist())
        if rng.integers(0, 3) and last - first < size and max(-first, last) < size:
            window[dim] = (first, last)
    return window or None


def opened(drawn, rng, folder):
    route = ROUTES[rng.integers(0, 4)] if folder is not None else ROUTES[rng.integers(0, 2)]
    data, sizes = drawn.data, drawn.data.sizes
    chunks = {dim: int(rng.integers(max(1, sizes[dim] // 4), sizes[dim] + 1)) for dim in sizes}
    if route == "memory":
        return data
    if route == "dask":
        return data.chunk(chunks)
    encoding = {
        name: {"chunks": tuple(chunks[dim] for dim in array.dims)}
        for name, array in data.items()
        if array.dims
    }
    path = str(folder / "data.zarr")
    data.to_zarr(path, encoding=encoding, consolidated=False, mode="w")
    return path if route == "store" else xr.open_zarr(path, chunks=None, consolidated=False)


def cut(drawn, rng, examples):
    """Cut the examples some times, and keep account of what windows may see."""
    for _ in range(int(rng.integers(0, 4))):
        dim = str(rng.choice(drawn.along))
        here = np.flatnonzero(drawn.spans[dim] >= 0)
        how = rng.integers(0, 4)
        if how == 0:
            mask = xr.DataArray(rng.random(drawn.data.sizes[dim]) < 0.8, dims=dim)
            examples = examples.where(mask)
            shape = [-1 if d == dim else 1 for d in drawn.along]
            drawn.kept = drawn.kept & mask.to_numpy().reshape(shape)
        elif how == 1:
            chosen = np.flatnonzero(rng.random(len(here)) < rng.choice([0.6, 0.9, 1]))
            examples = examples.isel({dim: chosen})
            leave(drawn, dim, here[chosen])
        elif how == 2:
            first, last = sorted(rng.integers(0, len(here) + 1, 2).tolist())
            examples = examples.isel({dim: slice(first, last)})
            leave(drawn, dim, here[first:last])
        else:
            fraction, part = float(rng.uniform(0.2, 0.8)), int(rng.integers(0, 2))
            overlap = bool(rng.random() < 0.7)
            examples = examples.split(fraction, overlap=overlap)[part]
            dim = drawn.along[0]
            here = np.flatnonzero(drawn.spans[dim] >= 0)
            border = int(np.round(fraction * len(here)))
            positions = here[border:] if part else here[:border]
            lows = drawn.lows[dim].copy()
            leave(drawn, dim, positions)
            if overlap:
                first = np.flatnonzero(drawn.spans[dim] == drawn.spans[dim][positions[0]])
                drawn.lows[dim][first] = lows[first]
    return examples


def leave(drawn, dim, positions):
    """Leave some positions selected: windows end where a run of neighbours ends."""
    old, lows = drawn.spans[dim], drawn.lows[dim]
    drawn.spans[dim], drawn.lows[dim] = np.full(len(old), -1), lows.copy()
    number = 0
    for place, position in enumerate(positions):
        before = positions[place - 1] if place else -2
        if before + 1 != position or old[before] != old[position]:
            number += 1
            began = position == 0 or old[position - 1] != old[position]
            low = lows[position] if began else position
        drawn.spans[dim][position], drawn.lows[dim][position] = number, low


def reach(drawn, dim, at):
    """How many steps down and up a window may go from a position."""
    spans, size = drawn.spans[dim], drawn.data.sizes[dim]
    names = drawn.data["g"].to_numpy() if drawn.groups and dim == "t" else np.zeros(size)

    def steps(by):
        position, crossed = at, False
        for count in range(size):
            old, new = position % size, (position + by) % size
            if old == (size - 1 if by > 0 else 0):
                crossed = free = drawn.edges[dim] == "wrap" and min(spans[old], spans[new]) >= 0
            elif by < 0 and not crossed:
                free = new >= drawn.lows[dim][at]
            else:
                free = spans[new] == spans[old]
            if not free or names[new] != names[at]:
                return count
            position += by
        return size

    return steps(-1), steps(1)


def seen(drawn, place, window):
    """The positions that a window sees along each dimension; None where it is dropped."""
    found = {}
    for dim, at in zip(drawn.along, place, strict=True):
        if dim not in window:
            found[dim] = np.array([at])
            continue
        offsets = np.arange(window[dim][0], window[dim][1] + 1)
        down, up = reach(drawn, dim, at)
        if drawn.edges[dim] == "drop" and (offsets[0] < -down or offsets[-1] > up):
            return None
        found[dim] = (at + np.clip(offsets, -down, up)) % drawn.data.sizes[dim]
    return found


def selected(drawn):
    """Which positions of the sample space are selected, dropped windows or not."""
    chosen = drawn.kept.copy()
    for axis, dim in enumerate(drawn.along):
        shape = [-1 if n == axis else 1 for n in range(len(drawn.along))]
        chosen = chosen & (drawn.spans[dim] >= 0).reshape(shape)
    return xr.DataArray(chosen, dims=drawn.along)


def scalings(drawn, scaled):
    """Mean and deviation of each input over the selected positions, each of which counts once."""
    found, chosen = {}, selected(drawn)
    for name in drawn.inputs:
        array = drawn.data[name]
        used = chosen.any([d for d in drawn.along if d not in array.dims]).broadcast_like(array)
        values = array.to_numpy()[used.transpose(*array.dims).to_numpy()].astype(np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        deviation = values.std() or 1.0
        found[name] = (values.mean(), deviation, name in scaled)
    return found


def together(parts):
    if len({part.shape for part in parts}) == 1:
        return parts[0] if len(parts) == 1 else np.stack(parts, -1)
    return np.concatenate([part.ravel() for part in parts])


def by_hand(drawn, numbers):
    """Inputs, target and weights of every example, by its number."""
    found, data = {}, drawn.data
    for place in itertools.product(*(np.flatnonzero(drawn.spans[d] >= 0) for d in drawn.along)):
        views = [seen(drawn, place, drawn.inputs[name] or {}) for name in drawn.inputs]
        if not drawn.kept[place] or any(view is None for view in views):
            continue
        parts, dropped = [], False
        for (name, window), view in zip(drawn.inputs.items(), views, strict=True):
            array = data[name]
            own = tuple(d for d in drawn.along if d in array.dims)
            values = array.transpose(*own, ...).to_numpy()
            values = values[np.ix_(*(view[d] for d in own))] if own else values
            lengths = [len(view[d]) if window and d in window else 1 for d in drawn.along]
            rest = values.shape[len(own) :]
            values = values.reshape(
                [len(view[d]) if d in own else 1 for d in drawn.along] + [*rest]
            )
            values = np.broadcast_to(values, (*lengths, *rest))
            values = values.reshape([*(len(view[d]) for d in window or {}), *rest])
            absent = np.isnan(values)
            dropped |= drawn.missing[name] == "drop" and bool(absent.any())
            mean, deviation, scaled = numbers[name]
            if scaled:
                values = np.where(absent, 0, (values.astype(np.float64) - mean) / deviation)
            parts.append(np.where(absent & (not scaled), mean, values))
        if dropped:
            continue
        at = dict(zip(drawn.along, place, strict=True))
        target = data[drawn.targets].isel(at).to_numpy()
        weight = np.ones_like(target)
        if drawn.weights:
            weight = (
                xr.ones_like(data[drawn.targets].isel(at))
                * data["p"].isel(at, missing_dims="ignore")
            ).to_numpy()
        weight = np.where(np.isnan(target), 0, weight)
        found[int(target.flat[0])] = together(parts), target, weight
    return found


def pieces(examples, portion, data):
    """The values that a worker's side of the examples needs for a portion, and no others."""
    found = {}
    for block in portion.blocks:
        for variable, box in examples.recipe.reads(block):
            index = variable.index(box)
            values = data[variable.name].to_numpy()[index]
            piece = Piece(variable.key, tuple(cut.start for cut in index), values)
            found.setdefault(variable.key, []).append(piece)
    return found


def fed(examples, batch_size, data):
    """What a worker feeds: the examples travel pickled, and values come with each portion."""
    found = {}
    small = pickle.loads(pickle.dumps(examples.worker_side()))
    with small.reader(prefetch=False) as reader:
        for portion in examples.cut(3 * batch_size, batch_size).portions(0, 0):
            for batch in reader.minibatches(
                portion, batch_size, blocks=pieces(examples, portion, data)
            ):
                weights = np.ones(len(batch.inputs)) if batch.weights is None else batch.weights
                for row in range(len(batch.inputs)):
                    number = int(np.ravel(batch.targets[row])[0])
                    assert number not in found
                    found[number] = batch.inputs[row], batch.targets[row], weights[row]
    return found


def check(seed, folder=None):
    rng = np.random.default_rng(seed)
    drawn = draw(rng)
    scaled = [name for name in drawn.inputs if rng.random() < 0.4]
    try:
        examples = dbdask.Examples(
            opened(drawn, rng, folder),
            inputs=drawn.inputs,
            targets=drawn.targets,
            along=drawn.along,
            weights=drawn.weights,
            groups="g" if drawn.groups else None,
            edges=drawn.edges,
            missing=drawn.missing,
        )
        examples = cut(drawn, rng, examples.for_loss("squared", None))
    except ValueError as error:
        assert any(
            words in str(error)
            for words in ("no examples are left", "selects nothing", "gets none of the")
        )
        return 0
    numbers = scalings(drawn, scaled)
    if numbers is None:
        return 0
    if scaled:
        examples = examples.standardize(variables=scaled, targets=False)
    wanted = by_hand(drawn, numbers)
    found = fed(examples, int(rng.integers(1, 9)), drawn.data)
    assert sorted(found) == sorted(wanted), seed
    for number, (inputs, target, weight) in found.items():
        values, right, weighed = wanted[number]
        assert inputs.shape == values.shape == examples.input_shape, (seed, number)
        np.testing.assert_allclose(inputs, values, rtol=2e-6, atol=2e-6, err_msg=f"{seed}")
        present = ~np.isnan(right)
        assert np.array_equal(target[present], right[present]), (seed, number)
        assert np.array_equal(np.broadcast_to(weight, weighed.shape), weighed), (seed, number)
    return len(found)


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def test_examples_of_grids_are_those_of_a_loop(record_property):
    record_property("drawn seeds", ["grids", QUICK.start, QUICK.stop])
    counts = [check(seed) for seed in QUICK]
    assert sum(counts) > 800 and sum(map(bool, counts)) > 35


def test_examples_of_stores_are_those_of_a_loop(tmp_path):
    assert sum(check(seed, tmp_path) for seed in range(8)) > 80


@pytest.mark.slow
@pytest.mark.parametrize("first", LONG)
def test_examples_of_many_grids_are_those_of_a_loop(first, tmp_path, record_property):
    seeds = range(first, first + LONG.step)
    record_property("drawn seeds", ["grids", seeds.start, seeds.stop])
    assert sum(check(seed, tmp_path if seed % 5 == 0 else None) for seed in seeds) > 5_000
