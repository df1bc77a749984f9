"""Magnitudes: what is measured of values, and for which of them a warning is due."""

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.metrics.magnitudes import Magnitude, merged, scale_warning

RNG = np.random.default_rng(0)
PART = RNG.uniform(size=5000)
NORMAL = RNG.normal(size=5000)
SOUND = {
    "standard normal": NORMAL,
    "pixels up to 1": PART,
    "one-hot of 1000": np.eye(1000)[:5].ravel(),
    "logarithms of energies": 10 + 3 * NORMAL,
    "degrees Celsius": 12 + 8 * NORMAL,
    "a constant": np.full(100, 7.0),
    "nothing but zeros": np.zeros(100),
    "nothing at all": np.full(100, np.nan),
    "a sparse count": (PART > 0.99) * 5.0,
}
FAR = {
    "pixels up to 255": RNG.integers(0, 256, 5000).astype(float),
    "dark pixels": np.where(PART > 0.8, RNG.integers(0, 256, 5000), 0).astype(float),
    "Kelvin": 285 + 10 * NORMAL,
    "pascals": 101_325 + 900 * NORMAL,
    "kilograms of water a kilogram of air": 0.004 * PART,
    "metres of rain a second": 1e-8 * PART,
}
COARSE = {
    "unix seconds of an hour": 1.7e9 + 3600 * PART,
    "Julian dates of a day": 2_460_000.5 + PART,
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_values_are_passed_over(case):
    assert scale_warning([Magnitude.of("inputs", "x", np.asarray(SOUND[case], float))]) == ""


@pytest.mark.parametrize("case", FAR)
def test_values_far_from_1_are_named_with_the_remedy(case):
    text = scale_warning([Magnitude.of("inputs", "x", FAR[case])])
    assert text.startswith("inputs: the values of 'x' are far from 1 (mean ")
    assert "give examples.standardize(), which" in text
    assert scale_warning([Magnitude.of("targets", "x", FAR[case])]) == ""


@pytest.mark.parametrize("case", COARSE)
@pytest.mark.parametrize("role", ["inputs", "targets"])
def test_values_that_float32_cannot_tell_apart_are_named(case, role):
    text = scale_warning([Magnitude.of(role, "x", COARSE[case])])
    assert text.startswith(f"{role}: float32, in which models compute, cannot tell")
    assert "standardize(targets=True)" in text if role == "targets" else "standardize()," in text


def test_values_beyond_float32_can_be_measured():
    assert Magnitude.of("inputs", "x", 1e300 * PART).largest == 1e300 * PART.max()


def test_float32_loses_what_numpy_says():
    values = COARSE["unix seconds of an hour"]
    found = Magnitude.of("inputs", "x", values)
    lost = (values - values.astype(np.float32)).std()
    assert found.lost_share == pytest.approx(lost / values.std(), rel=1e-2)


def test_what_workers_measure_is_merged_variable_by_variable():
    values = np.concatenate([FAR["Kelvin"], [np.nan, np.inf]])
    pieces = np.array_split(values, 7)
    reports = [
        (Magnitude.of("inputs", "x", piece), Magnitude.of("inputs", "z", piece * 2))
        for piece in pieces
    ]
    found, other = merged(reports)
    whole = values[np.isfinite(values)]
    assert (found.name, found.count, other.name) == ("x", 5000, "z")
    assert found.mean == pytest.approx(whole.mean()) and other.mean == pytest.approx(2 * found.mean)
    assert found.deviation == pytest.approx(whole.std())
    assert found.largest == whole.max()
    assert merged([]) == []


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", "f8"])
@pytest.mark.parametrize("windowed", [False, True])
def test_a_reader_measures_the_first_block_as_it_is_stored(dtype, windowed):
    values = (200 * PART.reshape(1000, 5)).astype(dtype)
    data = xr.Dataset({"x": (("t", "f"), values), "y": ("t", NORMAL[:1000])}).chunk(t=500)
    window = {"t": 3} if windowed else None
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t", window=window)
    with examples.reader(prefetch=False) as reader:
        assert reader.magnitudes == ()
        reader.block(0)
        inputs, targets = reader.magnitudes
    part = values[: 501 if windowed else 500].astype(float)
    assert (inputs.role, inputs.name, inputs.count) == ("inputs", "x", part.size)
    assert inputs.mean == pytest.approx(part.mean()) and inputs.largest == part.max()
    assert targets.role == "targets" and targets.count == 500
    with examples.standardize(targets=True).reader(prefetch=False) as reader:
        reader.block(0)
        assert reader.magnitudes == ()
