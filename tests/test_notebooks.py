"""Every notebook runs from top to bottom, is stored without outputs, and shows pictures."""

import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests, whatever else is installed."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="tests", language="python")


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    for cell in read(path).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


NEEDS = {"your_torch_module": "torch"}
"""What a notebook imports that is an extra of dbdask, and may not be installed."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.timeout(480)  # no cell has a limit of its own: what is slow is the machine
def test_notebook_runs(path, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem], reason=f"needs dbdask[{NEEDS[path.stem]}]")
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    # Dask says so where a machine has more to do than it can, and that is no fault of a notebook.
    lines = [line for line in "".join(said).splitlines() if "still alive after" not in line]
    assert not lines


MADE = """
import numpy as np
from dbdask.metrics.history import History, Record
from dbdask.result import Result
from dbdask.status import Status

records = [Record(float(n), 0, n, 10 * n, loss=1 / (n + 1)) for n in range(5)]
result = Result(None, None, np.zeros(1), History(records), Status("epochs", "made"))
"""


def pictures(cells):
    """Run cells in a fresh notebook; return how many pictures each shows."""
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_manager_class=ThisPython).execute()
    return [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in notebook.cells]


@pytest.mark.slow
def test_a_learning_curve_shows_itself_once_in_a_notebook():
    cells = [MADE + "result.plot()", "result.plot();", "figure = result.plot()\n1", "figure"]
    assert pictures(cells) == [1, 1, 1, 1]
    cells = ["import matplotlib\nmatplotlib.use('agg')", MADE, "result.plot()", "result.plot()"]
    assert pictures(cells) == [0, 0, 1, 1]
