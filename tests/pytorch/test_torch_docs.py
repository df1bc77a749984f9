"""The page on PyTorch modules: its program runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_program_runs_as_a_person_runs_it(tmp_path):
    page = (ROOT / "docs" / "torch.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "program.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the model keeps the contract" in done.stdout and "epochs: " in done.stdout
    assert float(re.search(r"'accuracy': ([0-9.]+)", done.stdout).group(1)) > 0.8
