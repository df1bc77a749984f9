"""Acting on a run while it is under way, on however busy a machine."""

import os
import shutil
import tempfile
import threading
import time
import weakref


class After:
    """A callback that acts once, on a thread of its own, when so many records have come.

    `over` is the path of a file that is there once it has acted: a model that is `SlowUntil` then
    keeps the run from ending before. Its error fails the test, and comes out of `done` too.
    """

    def __init__(self, records, action):
        self.records, self.action, self.error = records, action, None
        self.thread = threading.Thread(target=self._act)
        folder = tempfile.mkdtemp(prefix="dbdask-test-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.over = os.path.join(folder, "over")

    def __call__(self, record):
        self.records -= 1
        if self.records == 0:
            self.thread.start()

    def _act(self):
        try:
            self.action()
        except BaseException as error:
            self.error = error
            raise
        finally:
            touch(self.over)

    def done(self):
        """Wait until it has acted."""
        self.thread.join(60)
        if self.error is not None:
            raise self.error


def touch(path):
    """Make an empty file."""
    with open(path, "w"):
        pass


def over(callbacks):
    """The file that says that an `After` among callbacks has acted; None where there is none."""
    return next((c.over for c in callbacks if isinstance(c, After)), None)


class SlowUntil:
    """A model that takes its time until a file is there.

    Parameters
    ----------
    model
        The model.
    until
        Path of the file; None for a model that is never slow.
    minibatches
        How many a process computes before it slows down: what comes before what is done to it.
    seconds
        What every other takes longer.
    """

    def __init__(self, model, until, minibatches, seconds=0.1):
        self.model, self.until = model, until
        self.minibatches, self.seconds = minibatches, seconds

    def __getattr__(self, name):
        if name.startswith("__") or name == "model":  # asked for before it is unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def loss_and_gradient(self, *arguments, **options):
        self.minibatches -= 1
        if self.until is not None and self.minibatches < 0:
            self._linger()
        return self.model.loss_and_gradient(*arguments, **options)

    def _linger(self):
        for _ in range(int(self.seconds / 0.001)):  # so that a stopped process is late
            if os.path.exists(self.until):
                return
            time.sleep(0.001)
