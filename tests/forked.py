"""Programs in processes of their own, forked from one that has imported Dask and dbdask.

A new interpreter spends seconds on its imports; a forked process has them.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import warnings

import dask

CONTEXT = multiprocessing.get_context("forkserver")


class Forked:
    """A process that leads a group of its own: what tests use of `subprocess.Popen`.

    Parameters
    ----------
    function, arguments
        What it runs.
    environment
        More variables for it.
    log
        The file that it writes to; without one that is a pipe, from which `stdout` reads.
    """

    def __init__(self, function, *arguments, environment=None, log=None):
        reading, writing = CONTEXT.Pipe(duplex=False)
        settings = writing, environment or {}, log
        self._process = CONTEXT.Process(target=_run, args=(*settings, function, arguments))
        self._process.start()
        writing.close()
        reading.recv()  # it leads its group
        self.stdout = None if log else os.fdopen(os.dup(reading.fileno()))
        reading.close()

    @property
    def pid(self):
        return self._process.pid

    def poll(self):
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        """Wait for its end; returns the exit code."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.poll()

    def communicate(self, timeout=None):
        """Wait for its end; returns what it wrote that was not read yet, and None."""
        with self.stdout:
            said = self.stdout.read()
        self.wait(timeout)
        return said, None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(writing, environment, log, function, arguments):
    os.setsid()
    os.environ.update(environment)
    dask.config.refresh()
    writing.send(None)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else writing.fileno()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    writing.close()
    function(*arguments)


def run_dask(arguments):
    """Do what `python -m dask` does with some arguments."""
    sys.argv = ["dask", *arguments]
    runpy.run_module("dask", run_name="__main__", alter_sys=True)


def fork_script(script, environment=None):
    """Run a script, as `python -c` would."""
    return Forked(_execute, textwrap.dedent(script), environment=environment)


def read_until(process, line):
    """Read what a process prints up to a line; the run may have said something before it."""
    said = []
    while not said or said[-1] != f"{line}\n":
        said.append(process.stdout.readline())
        assert said[-1], "".join(said)


def _execute(script):
    warnings.simplefilter("ignore")
    exec(script, {"__name__": "__main__"})
