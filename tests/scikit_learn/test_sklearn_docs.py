"""The page on estimators: its program runs."""

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn: dbdask[sklearn]")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sklearn.md"


@pytest.mark.slow
def test_the_program_runs(capsys):
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out.splitlines()
    assert "learning_rate=0.1" in said[0] and float(said[0].split()[-1]) > 0.9
    assert float(said[-1]) > 0.9
