"""Without a client an algorithm makes a cluster of its own, which ends with it."""

import subprocess
import sys

import pytest
from test_downpour import write_store

PROGRAM = """
import sys, threading
import psutil
from dask.distributed import default_client
import dbdask

def children():
    # Python keeps one of its own, which tracks shared memory.
    found = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    return [line for line in found if "resource_tracker" not in line]

if __name__ == "__main__":
    algorithm, store, how = sys.argv[1:]
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    layers = [dbdask.Dense(4, "tanh"), dbdask.Dense(3)]
    model = dbdask.Network(input_shape=examples.input_shape, layers=layers, loss="softmax")
    def act(record):
        assert children(), "no cluster of its own"
        if how == "raises":
            raise RuntimeError("mine")
    try:
        result = getattr(dbdask, algorithm)(model, examples, progress=False, callbacks=[act])
        print("trained", result.predict(store).sizes)
    except RuntimeError as error:
        print("raised", error)
    print("children", children())
    print("threads", sorted(t.name for t in threading.enumerate() if not t.daemon))
    try:
        print("client", default_client())
    except ValueError:
        print("no client")
"""


@pytest.mark.parametrize(
    ("algorithm", "how"),
    [("downpour", "ends"), pytest.param("sandblaster", "raises", marks=pytest.mark.slow)],
)
def test_the_own_cluster_ends_with_the_algorithm(tmp_path, algorithm, how):
    store = write_store(tmp_path / "store.zarr")
    (tmp_path / "train.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "train.py", algorithm, store, how],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert ("trained Frozen({'row'" if how == "ends" else "raised mine") in done.stdout
    assert "children []" in done.stdout
    assert "threads ['MainThread']" in done.stdout
    assert "no client" in done.stdout
