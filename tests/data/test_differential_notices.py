"""The generator notices what does not come back from a store as it was predicted."""

import numpy as np
import pytest
import xarray as xr
from differential.comparing import Wrong
from differential.counting import spans
from differential.writing_back import WAYS, check_written


def _prediction():
    values = {"y0": ("t", [1.0, 2, np.nan]), "y1": (("t", "f"), np.arange(6.0).reshape(3, 2))}
    coords = {"t": [3, 4, 5], "name": ("t", ["a", "", "b"]), "scalar": 2**53 + 1}
    return xr.Dataset(values, coords).chunk(t=2)


def test_what_comes_back_equal_is_written_everywhere(tmp_path):
    lazy = _prediction()
    assert check_written(lazy, lazy.compute(), tmp_path) == list(WAYS)


@pytest.mark.parametrize("name", ["y0", "y1", "name", "scalar", "t"])
def test_a_variable_that_changes_on_the_way_is_noticed(tmp_path, name):
    lazy, computed = _prediction(), _prediction().compute()
    other = {"name": ("t", ["a", "", "c"]), "scalar": 2**53}
    computed = computed.assign({name: other[name] if name in other else computed[name] + 1})
    with pytest.raises(Wrong, match=name if name != "t" else "not aligned"):
        check_written(lazy, computed, tmp_path)


def test_an_encoding_that_changes_a_coordinate_is_noticed(tmp_path):
    lazy = _prediction()
    lazy["scalar"].encoding = {"dtype": "int16"}
    with pytest.raises(Wrong, match="'scalar' is changed"):
        check_written(lazy, _prediction().compute(), tmp_path)


def test_seeds_are_shown_as_ranges():
    assert spans([(25, 50), (0, 25), (100, 125)]) == "0-49, 100-124"
