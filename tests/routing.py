"""Disturbing the calls between replicas and shards, whatever transport carries them."""

import time

from dbdask.worker.routes import WorkerRoutes


class Disturbed:
    """A transport whose calls are started by a function instead."""

    is_direct = False

    def __init__(self, way, place, start):
        self.way, self.place, self._start = way, place, start

    def start(self, request, sent=None, into=None):
        return self._start(self.way, self.place, request, sent, into)


def disturb(start):
    """Let `start(way, place, request, sent, into)` start every call of this process.

    Returns the function that ends it.
    """
    plain = WorkerRoutes.transport

    def transport(routes, place, generation):
        return Disturbed(plain(routes, place, generation), place, start)

    WorkerRoutes.transport = transport

    def stop():
        WorkerRoutes.transport = plain

    return stop


def finish(call, seconds=60):
    """Wait for a call, and return its answer."""
    until = time.monotonic() + seconds
    while not call.wait(0.1):
        if time.monotonic() > until:
            raise OSError("no answer came")
    return call.result()


class Answered:
    """A call that has ended."""

    def __init__(self, answer):
        self.answer = answer

    def wait(self, seconds):
        return True

    def result(self):
        return self.answer

    def cancel(self):
        pass
