"""The README's program runs as a person runs it: as a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import dbdask

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the README's program in an empty folder; give the folder and what it printed."""
    folder = tmp_path_factory.mktemp("readme")
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    (folder / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_the_front_door_trains(run):
    _, printed = run
    assert printed.startswith("epochs: ")
    assert float(re.search(r"'accuracy': ([0-9.]+)", printed).group(1)) > 0.9


def test_predictions_align_with_the_data(run):
    folder, _ = run
    data = xr.open_zarr(folder / "speech.zarr")
    predicted = xr.open_zarr(folder / "phonemes.zarr")
    xr.align(data, predicted, join="exact")
    assert float((data.phoneme == predicted.phoneme).mean()) > 0.9


def test_the_saved_model_predicts_the_same(run):
    folder, _ = run
    predicted = xr.open_zarr(folder / "phonemes.zarr").phoneme
    again = dbdask.load(folder / "model.zarr").predict(folder / "speech.zarr")
    xr.testing.assert_equal(predicted.compute(), again.compute())
