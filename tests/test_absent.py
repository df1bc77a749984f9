"""Without an extra its tests are skipped, and say so; everything else is collected and runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
EXTRAS = ["torch", "sklearn", "dask.dataframe"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_file_that_imports_an_extra_skips_without_it(extra):
    imports = re.compile(rf"^\s*(import|from) {re.escape(extra)}\b", re.MULTILINE)
    skips = re.compile(rf'importorskip\(\s*"{re.escape(extra)}|except ImportError')
    found = [path for path in TESTS if imports.search(path.read_text())]
    assert found
    assert not [path.name for path in found if not skips.search(path.read_text())]


# What dask.dataframe needs and dask does not is pyarrow.
PACKAGES = [
    ("torch", ["models/test_conformance.py", "models/test_image_layers.py"], "torch"),
    (
        "sklearn",
        ["models/test_losses.py", "models/test_network.py", "optim/test_optimizers.py"],
        "needs scikit-learn",
    ),
    ("pyarrow", ["data/test_tables.py"], r"needs dask\[dataframe\]"),
]


def run_without(package, *arguments):
    """Return what pytest prints in an environment that lacks a package; it succeeds."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "tests/absent.py", package, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=mine,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.parametrize(("package", "files", "reason"), PACKAGES)
def test_without_a_package_its_tests_are_skipped_and_say_so(package, files, reason):
    everything = run_without(package, "--collect-only", "-q", "-m", "")
    assert "tests/test_structure.py: " in everything
    said = run_without(package, "-rs", *(f"tests/{name}" for name in files))
    for name in files:
        assert re.search(rf"SKIPPED \[\d+\] tests/{name}:\d+: .*{reason}", said), said
