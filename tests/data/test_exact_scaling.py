"""Nothing is rounded before the mean is taken off, and nothing too large reaches a model."""

import numpy as np
import pytest
import xarray as xr
from seeing import seen

from dbdask.data.examples import Examples
from dbdask.data.standardization import Moments, Scaling, merge
from dbdask.errors import DataError

RNG = np.random.default_rng(12)
PART = RNG.uniform(size=500)
FAR = {
    "kelvin": 280 + 20 * PART,
    "northing": 5.4e6 + 100 * PART,
    "unix seconds": 1.7e9 + 3600 * PART,
    "julian date": 2460000.5 + PART,
    "a second of julian dates": 2460000.5 + PART / 86400,
    "tiny": 1e-60 * PART,
    "huge": 1e60 * (PART - 0.5),
    "integers": (2**31 + 1000 * PART).astype(np.int64),
    "unix nanoseconds": (1.7e18 + 3.6e12 * PART).astype(np.int64),
    "unsigned": (2**63 + 2**40 * PART).astype(np.uint64),
    "int32": (2**30 + 100 * PART).astype(np.int32),
    "float32 kelvin": (280 + 20 * PART).astype(np.float32),
    "float32 far": (1e6 + 5 * PART).astype(np.float32),
    "half": (100 + 10 * PART).astype(np.float16),
    "pixels": (255 * PART).astype(np.uint8),
    "truths": PART > 0.3,
}


def reference(values):
    """Return standard scores in twice the precision."""
    wide = values.astype(np.longdouble)
    return ((wide - wide.mean()) / wide.std()).astype(np.float64)


@pytest.mark.parametrize("per", ["variable", "feature"])
@pytest.mark.parametrize("kind", FAR)
def test_inputs_and_targets_are_scaled_before_they_are_rounded(kind, per):
    values = FAR[kind]
    data = xr.Dataset({"x": ("n", values), "y": ("n", PART)}).chunk(n=170)
    wanted = reference(values)
    wide = values.astype(np.longdouble)
    # The mean itself is a float64 number: by so many deviations it may be off.
    off = float(np.spacing(abs(float(wide.mean()))) / wide.std())
    inputs = Examples(data, inputs="x", along="n").standardize(per=per)
    np.testing.assert_allclose(seen(inputs)[0], wanted, rtol=3e-6, atol=3e-7 + off)
    targets = Examples(data, inputs="y", targets="x", along="n").standardize(per=per, targets=True)
    scaled = targets.for_loss("squared", 1)
    np.testing.assert_allclose(seen(scaled)[1], wanted, rtol=3e-6, atol=3e-7 + off)
    mean, deviation = scaled.target_scaling
    assert float(deviation) == pytest.approx(float(wide.std()), rel=1e-9 + off)
    assert abs(float(mean - wide.mean())) <= (1e-9 + off) * float(deviation)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u8", "u1", "?"])
@pytest.mark.parametrize("value", [0, 1, 0.1, 280.15, 2460000.5, 1e18])
def test_a_constant_has_deviation_one_whatever_its_chunks(dtype, value):
    with np.errstate(over="ignore", invalid="ignore"):
        constant = np.array(value).astype(dtype)
    if not np.isfinite(constant):
        return
    values = np.full((1000, 3), constant)
    for per in ("variable", "feature"):
        parts = [Moments.of(part, per) for part in np.array_split(values, 7)]
        scaling = Scaling.of(merge(parts), rounding=0.0)
        assert set(scaling.deviation) == {1.0} and set(scaling.mean) == {float(constant)}
        np.testing.assert_array_equal(scaling.apply(values), np.zeros((1000, 3), np.float32))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_neighbouring_values_differ_in_any_dtype(dtype):
    nearly = np.where(np.arange(100) % 2, 280.0, float(np.nextafter(np.float32(280), np.inf)))
    data = xr.Dataset({"x": ("n", nearly.astype(dtype))})
    (scaling,) = Examples(data, inputs="x", along="n").standardize().recipe.inputs.scalings
    assert scaling.deviation[0] == pytest.approx(float(nearly.std()))


@pytest.mark.parametrize("gap", [False, True])
def test_too_large_is_refused_unless_it_is_scaled(gap):
    values = np.array([1e40, -1e40, 3e39, 0.0, 1.0])
    values = np.where(np.arange(5) == (3 if gap else 9), np.nan, values)
    data = xr.Dataset({"x": ("n", values)})
    examples = Examples(data, inputs="x", along="n", missing="mask" if gap else "error")
    with pytest.raises(DataError, match=r"'x' at n=0 is infinite, or too large for float32"):
        seen(examples)
    scaled = seen(examples.standardize())[0]
    there = ~np.isnan(values)
    np.testing.assert_allclose(scaled[there], reference(values[there]), rtol=1e-6, atol=1e-7)


def test_what_scaling_makes_too_large_is_refused():
    data = xr.Dataset({"x": ("n", np.array([0.0, 1e-6, 2e-6], np.float32))})
    trained = Examples(data, inputs="x", along="n").standardize()
    other = xr.Dataset({"x": ("n", np.array([0.0, 3e37, 1.0], np.float32))})
    with pytest.raises(DataError, match=r"'x' at n=1 is infinite, or too large"):
        seen(Examples(other, inputs="x", along="n").prepared_like(trained))


def test_values_too_far_apart_are_named():
    data = xr.Dataset({"x": ("n", np.array([1e300, -1e300, 0.0]))})
    with pytest.raises(DataError, match=r"inputs: variable 'x' has values too far apart"):
        Examples(data, inputs="x", along="n").standardize()
    infinite = xr.Dataset({"x": ("n", np.array([np.inf, 0.0]))})
    with pytest.raises(DataError, match=r"'x' holds an infinite value"):
        Examples(infinite, inputs="x", along="n").standardize()


def test_what_is_missing_of_far_values_is_the_mean():
    values = np.where(np.arange(500) % 7 == 0, np.nan, FAR["julian date"])
    data = xr.Dataset({"x": (("n", "f"), values.reshape(100, 5))})
    scaled = Examples(data, inputs="x", along="n", missing="mask").standardize()
    inputs = seen(scaled)[0].reshape(-1)
    there = ~np.isnan(values)
    assert (inputs[~there] == 0).all()
    np.testing.assert_allclose(inputs[there], reference(values[there]), rtol=3e-6, atol=3e-7)


def test_scaling_survives_its_description():
    data = xr.Dataset({"x": ("n", FAR["julian date"]), "y": ("n", PART)})
    scaled = Examples(data, inputs="x", targets="y", along="n").standardize()
    again = Examples.from_description(scaled.description(), data)
    np.testing.assert_array_equal(seen(again)[0], seen(scaled)[0])


def test_what_an_older_version_wrote_is_understood():
    data = xr.Dataset({"x": ("n", PART), "y": ("n", PART > 0.5)})
    described = Examples(data, inputs="x", targets="y", along="n").description()
    for variable, dtype in zip(described["variables"], ["<f4", "|i1"], strict=True):
        variable["dtype"] = dtype
        del variable["dtype_name"]
    again = Examples.from_description(described)
    assert again.has_labels and again.recipe.targets.variables[0].value_dtype == np.int8
    np.testing.assert_array_equal(
        seen(Examples.from_description(described, data))[0], PART.astype(np.float32)
    )
