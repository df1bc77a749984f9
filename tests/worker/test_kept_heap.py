"""Memory that replicas free is kept while they run, and given back after the last of them."""

import os
import subprocess
import sys

import pytest

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
