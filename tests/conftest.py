"""Clusters that tests share: one in threads, one in processes; and where a test hangs."""

import gc
import signal
from collections.abc import Iterator
from multiprocessing import set_forkserver_preload

import dask
import pytest
from differential import counting
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context
from hanging import Watch

# What starts in a shell's background ignores Ctrl-C, and so would all that the tests press it for.
signal.signal(signal.SIGINT, signal.default_int_handler)

dask.config.set(
    {
        "distributed.worker.profile.enabled": False,
        # LocalCluster closes the nanny of a worker that is away 15 s after it was lost, though it
        # may have come back and been killed again.
        "distributed.deploy.lost-worker-timeout": "1h",
        # Workers are forked from a process that has imported what they need: a fifth of a second
        # for a cluster where a new interpreter each takes four.
        "distributed.worker.multiprocessing-method": "forkserver",
    }
)


def preload() -> None:
    """Have workers forked from a process that has imported dbdask, and so Dask and xarray."""
    get_mp_context()  # Sets a list of its own, once.
    set_forkserver_preload(["distributed", "dbdask", "dbdask.worker.replica"])


preload()

# A file runs in one process from its first test to its last. The longest begin, so that no process
# is left with one when the others have ended.
LONGEST = (
    "test_leaving",
    "test_real_cluster",
    "test_store_failures",
    "test_sandblaster",
    "test_ends",
    "test_same_host",
    "test_faults",
    "test_best",
    "test_notebooks",
    "test_torch_training",
    "test_leaks",
    "test_inside_tasks",
    "test_exact_counts",
    "test_silence",
    "test_mutations",
    "test_downpour",
    "test_differential",
    "test_differential_more",
    "test_minibatches",
    "test_readme",
    "test_lost_tasks",
    "test_pickling",
    "test_promises_of_runs",
    "test_raised",
    "test_bad_input",
    "test_pauses",
    "test_sources",
    "test_torch_docs",
    "test_pass",
    "test_gridded",
    "test_pass_gradient",
    "test_batch_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the others stay as they are."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Spare the collector what thousands of collected tests hold: it looks after each file."""
    gc.collect()
    gc.freeze()


watch = Watch()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Look at a test that takes very long while it still hangs: failing lets go of everything."""
    with watch.over_a_test():
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show in the report of a test that failed what was seen of it while it hung."""
    report = (yield).get_result()
    if report.failed and watch.seen:
        report.sections.append(("What hung", watch.seen))


def pytest_terminal_summary(terminalreporter):
    """Print what the differential tests drew and met, on whichever worker they ran."""
    total: dict = {}
    seeds: dict = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, counts in getattr(report, "user_properties", ()):
                if name == "differential" and report.when == "call":
                    counting.add(total, counts)
                if name == "drawn seeds" and report.when == "call":
                    what, *span = counts
                    seeds.setdefault(what, []).append(tuple(span))
    if seeds:
        terminalreporter.section("drawn at random")
        ranges = (f"{what} {counting.spans(spans)}" for what, spans in sorted(seeds.items()))
        terminalreporter.write_line(f"seeds: {'; '.join(ranges)}")
    if total:
        terminalreporter.write_line(counting.report(total))


@pytest.fixture(scope="module", autouse=True)
def nothing_held() -> Iterator[None]:
    """Let go of futures: an error that a test caught holds those of its frames, in a cycle.

    No test changes the configuration of those that follow: clusters would start slowly.
    """
    yield
    gc.collect()
    assert dask.config.get("distributed.worker.multiprocessing-method") == "forkserver"


@pytest.fixture
def quick_turns(monkeypatch) -> None:
    """Runs look around more often, and so are far from the moment when a nanny kills a worker."""
    monkeypatch.setattr("dbdask.run.roster.REFRESH_SECONDS", 0.05)
    monkeypatch.setattr("dbdask.run.run.TURN_SECONDS", 0.05)


@pytest.fixture(scope="session")
def threads_client() -> Iterator[Client]:
    """Two workers of one thread in this process."""
    with (
        LocalCluster(
            processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def process_client() -> Iterator[Client]:
    """Two worker processes of one thread."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
