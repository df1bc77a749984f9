"""Programs that compare, run as a person runs them, at a size that shows only that they work."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CASES = {
    "peers_throughput": (
        ["--nets", "tiny", "--seconds", "0.1", "--only", "limit", "processes, 1", "numpy, 1"],
        [["dbdask, processes, 1 replica", "limit, 2 processes", "numpy, 1 thread"]],
    ),
    "peers_accuracy": (
        "--tasks images --digits --target 0.2 --epochs 3 --only downpour".split(),
        [["dbdask, downpour"]],
    ),
    "peers_whole_call": (
        "--digits --epochs 1 --iterations 3 --only threads".split(),
        [["dbdask, threads"]] * 2,
    ),
    "peers_larger_than_memory": (
        "--gibibytes 0.0625 --limit 2GiB --only dbdask".split(),
        [["dbdask"]],
    ),
    "peers_feed": (
        "--rows 400 --chunk 80 --batch 20 --only dbdask".split(),
        [["dbdask"]] * 2,
    ),
    "coordinator": ("--workers 2 --seconds 0.5".split(), [["2 workers"]]),
    "transport": (
        "--sizes 100".split(),
        [
            [
                "dask, fetch",
                "dask, push",
                "in-process, fetch",
                "in-process, push",
                "memory copy",
                "same-host, fetch",
                "same-host, push",
            ]
        ],
    ),
    "sandblaster_speed": (
        "--nets small --rows 1024 --passes 2".split(),
        [["computing, 2 processes", "one process, 2 threads", "sandblaster, 2 workers"]],
    ),
    "partition_speedup": (
        "--nets speech --small --parts 2 --seconds 0.1".split(),
        [["1 part", "2 parts"]],
    ),
    "torch_speed": (
        "--nets cnn --rows 1024 --epochs 3 --only plain replica".split(),
        [["1 replica", "2 replicas", "plain torch"]],
    ),
}


def run(program, arguments, folder):
    """Run a program for one round; return what it wrote and what it printed."""
    path = folder / "new" / f"{program}.json"
    shared = ["--rounds", "1", "--json", path]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{program}", *shared, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.mark.parametrize(
    ("program", "arguments", "expected"), [(n, *c) for n, c in CASES.items()], ids=CASES
)
def test_a_program_writes_what_it_prints(program, arguments, expected, tmp_path):
    if program == "torch_speed" and find_spec("torch") is None:
        pytest.skip("needs PyTorch: dbdask[torch]")
    kept, printed = run(program, arguments, tmp_path)
    assert kept["program"] == program
    assert kept["machine"]["cores"] >= 1 and kept["versions"]["numpy"]
    tables = kept["tables"]
    without_zarrs = [[n for n in made["rounds"] if "zarrs" not in n] for made in tables]
    assert [sorted(names) for names in without_zarrs] == expected
    for made in tables:
        assert made["title"] in printed and not made["failed"]
        for (figures,) in made["rounds"].values():
            first = next(iter(figures.values()))
            assert math.isfinite(first) and first > 0
        check_answers(made, printed)


def check_answers(made, printed):
    """What is asked was answered from the figures, or it is said who is absent."""
    for pair in made["pairs"]:
        if "unknown" in pair:
            assert f"not known, {pair['unknown']}" in printed
            assert "was not asked for" in pair["unknown"] or "not installed" in pair["unknown"]
            continue
        over, under = (made["rounds"][pair[side]][0][pair["figure"]] for side in ("over", "under"))
        assert pair["least"] == pair["median"] == pair["most"] == pytest.approx(over / under)
        if pair["wanted"] is not None:
            is_most = pair["at"] == "most"
            reached = over <= pair["wanted"] * under if is_most else over >= pair["wanted"] * under
            assert pair["reached"] is reached
    for target in made["targets"]:
        assert target["median"] == made["rounds"][target["contestant"]][0][target["figure"]]


def test_every_program_that_compares_is_run_here():
    comparing = {
        path.stem
        for path in (ROOT / "benchmarks").glob("[a-z]*.py")
        if "_side_by_side import" in path.read_text()
    }
    assert comparing == {*CASES, "torch_accuracy"}  # which has a test of its own
