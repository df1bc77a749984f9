"""Memory that replicas free is kept while they run, and given back after the last of them."""

import os
import subprocess
import sys

import pytest

from dbdask.worker.kept_heap import KeptHeap

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the setting is one of glibc"
)

PROGRAM = """
import resource, threading
import numpy as np
from dbdask.worker.kept_heap import KeptHeap

def step():
    "Temporaries as those of a minibatch: 8 MiB in pieces of 512 KiB."
    return [np.ones(2**16) for _ in range(16)]

def faults(steps=10):
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / steps

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def run():
    heap = KeptHeap()
    found = [faults()]
    with heap.kept():
        step()
        found.append(faults())
        with heap.kept():
            step()
        found.append(faults())
        large = resident()
    found.append(large - resident())
    print(*found)

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("trim", ["65536", None])
def test_a_repeated_step_takes_no_new_pages_while_the_heap_is_kept(trim):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if trim is not None:
        environment["MALLOC_TRIM_THRESHOLD_"] = trim  # as a nanny of Dask sets it
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    before, kept, nested, given_back = map(float, done.stdout.split())
    pages = 2**23 / os.sysconf("SC_PAGESIZE")
    assert kept < 0.02 * pages and nested < 0.02 * pages
    assert given_back > 0.5 * pages
    if trim is not None:
        assert before > 0.9 * pages


def test_the_thresholds_of_the_environment_hold_again_afterwards(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    heap, calls = KeptHeap(), []
    heap._library = Recorded(calls)
    with heap.kept(), heap.kept():
        assert calls == [("mallopt", -1, 2**28), ("mallopt", -3, 2**25)]
    assert calls[2:] == [("mallopt", -1, 2**26), ("mallopt", -3, 2**25), ("malloc_trim", 0)]
    for text, trim in [("65536", 65_536), ("many", 2**17)]:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", text)
        with heap.kept():
            calls.clear()
        assert calls == [("mallopt", -1, trim), ("mallopt", -3, 2**17), ("malloc_trim", 0)]


def test_nothing_happens_with_another_c_library():
    heap = KeptHeap()
    heap._library = None
    with heap.kept():
        pass


class Recorded:
    """A C library that writes down its calls."""

    def __init__(self, calls):
        self.calls = calls

    def mallopt(self, name, value):
        self.calls.append(("mallopt", name, value))

    def malloc_trim(self, kept):
        self.calls.append(("malloc_trim", kept))
