"""Notices to workers: one that fails is logged, and fails nothing else."""

import types

from asking import workers_of

from dbdask.errors import WorkerError
from dbdask.run.worker_notices import WorkerNotices

GONE = "tcp://127.0.0.1:9"  # nobody is there


def fail(run, dask_worker):
    raise OSError(f"{run} cannot be closed")


def fail_otherwise(run, dask_worker):
    raise AttributeError("plugin_add")


def warned(caplog):
    told = [r for r in caplog.records if (r.name, r.levelname) == ("dbdask", "WARNING")]
    return [record.getMessage() for record in told]


def test_a_notice_that_fails_is_logged_once_for_each_worker_and_kind(threads_client, caplog):
    notices = WorkerNotices(threads_client, "run")
    workers = sorted(workers_of(threads_client))
    for function in (fail, fail, fail_otherwise, fail):
        threads_client.sync(notices.send, workers, function, "run")
    first = [f"worker {w} did not carry out fail: OSError('run cannot be closed')" for w in workers]
    other = [
        f"worker {w} did not carry out fail_otherwise: AttributeError('plugin_add')"
        for w in workers
    ]
    assert sorted(warned(caplog)) == sorted(first + other)


def test_a_worker_that_has_left_is_no_warning(threads_client, caplog):
    caplog.set_level("DEBUG", "dbdask")
    notices = WorkerNotices(threads_client, "run")
    threads_client.sync(notices.add_drain, GONE)
    assert not warned(caplog)
    assert f"worker {GONE} did not carry out add_drain" in caplog.text


def test_only_a_connection_that_fails_is_no_answer(threads_client, caplog):
    """An error that a worker's answer causes may be of the same type."""
    notices = WorkerNotices(threads_client, "run")
    broken = WorkerError("worker w gave no answer")
    broken.__cause__ = OSError()
    for number, error in enumerate([OSError(), KeyError("w"), WorkerError("w is not fit")]):
        notices._note_failure("w", f"notice {number}", error)
    notices._note_failure("w", "notice 3", broken)
    assert [line.split(":")[0][-1] for line in warned(caplog)] == ["0", "1", "2"]


def test_where_the_scheduler_is_gone_a_notice_is_no_warning(caplog):
    closed = types.SimpleNamespace(scheduler_comm=None)
    WorkerNotices(closed, "run")._note_failure("w", "close_context", RuntimeError("closed"))
    assert not warned(caplog)
