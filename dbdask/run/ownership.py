"""The owner of a checkpoint: one run writes to it at a time, and says so while it lives.

A run takes a checkpoint that has no owner, or whose owner is dead, and renews its name there six
times in `dbdask.owner`. An owner is dead if its process was on this machine and has ended, or if
its name has not changed for `dbdask.owner`. Before each commit, and before old snapshots are
deleted, the run looks whether the checkpoint is still its own. So of two runs one goes on, and the
other ends with an error: the later one, unless the first did not renew its name for so long.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from dbdask.daemon_threads import call_within, start_call
from dbdask.errors import CheckpointError
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.store_calls import call_store
from dbdask.schedule.awake import AwakeClock
from dbdask.storage import checkpoint, owner
from dbdask.storage.owner import Owner

T = TypeVar("T")

logger = logging.getLogger("dbdask")

BEATS = 6  # in the time after which an owner counts as dead
WARN_FAILED = 2  # renewals in a row: one may fail by chance
LOOK_SECONDS = 0.25
SETTLING = 10  # times as long as the store took to take a name in: others may do so meanwhile
LEAST_SETTLING = 0.05  # seconds


def in_time(path: str, doing: str, function: Callable[..., T], *arguments: object) -> T:
    """Call a function that uses the store, within `dbdask.store`.

    Raises
    ------
    CheckpointError
        The store gave no answer: it says while what was done.
    """
    place = f"checkpoint={path!r}"
    return call_store(place, doing, function, *arguments, error=CheckpointError)


class Ownership:
    """A run's hold of its checkpoint.

    Parameters
    ----------
    path
        The checkpoint.
    settings
        What it is of: a checkpoint that is deleted is begun anew with them.
    """

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.me = owner.this_process(deadline("owner"))
        self._ended = threading.Event()
        self._writing = threading.Lock()  # held while the name is renewed, and when it is deleted
        self._renewing = threading.Thread(target=self._renew, name="dbdask-owner", daemon=True)

    def take(self) -> None:
        """Become the owner, as soon as no other run is.

        Raises
        ------
        CheckpointError
            Another run that lives is the owner, or the store hangs.
        """
        try:
            while not self._try_to_take():
                time.sleep(LOOK_SECONDS)
        except BaseException:
            owner.has_ended(self.me)
            raise
        self._renewing.start()

    def _try_to_take(self) -> bool:
        other = self._look()
        if other is not None and not self._is_dead(other):
            return False
        began = time.monotonic()
        if other is None:
            self._do("taking it", owner.write_first, self.path, self.me)
        else:
            logger.info("checkpoint=%r is taken over from %s, which has ended", self.path, other)
            self._do("taking it over", owner.write, self.path, self.me)
        time.sleep(max(LEAST_SETTLING, SETTLING * (time.monotonic() - began)))
        now = self._look()
        return now is not None and now.token == self.me.token

    def _is_dead(self, other: Owner) -> bool:
        """Whether another owner is dead: known, or waited for; False if there is another one now.

        Raises
        ------
        CheckpointError
            It lives.
        """
        if other.is_here:
            raise self._in_use(other)
        if other.is_gone:
            return True
        patience = max(other.patience, self.me.patience)
        logger.warning(
            "checkpoint=%r belongs to %s: waiting until it renews its name, %g s at most "
            "(dbdask.owner)",
            self.path,
            other,
            patience,
        )
        clock = AwakeClock()  # after a pause of this process it looks again before it judges
        while clock.seconds() < patience:
            time.sleep(LOOK_SECONDS)
            now = self._look()
            if now is None or now.token != other.token:
                return False
            if now.beats != other.beats:
                raise self._in_use(other)
        return True

    def _in_use(self, other: Owner) -> CheckpointError:
        return CheckpointError(
            f"checkpoint={self.path!r} is in use by {other} and is at work: wait for its end, or "
            "give each run its own path"
        )

    def _look(self) -> Owner | None:
        return self._do("looking for its owner", owner.read, self.path)

    def _do(self, doing: str, function: Callable[..., T], *arguments: object) -> T:
        try:
            return in_time(self.path, doing, function, *arguments)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"checkpoint={self.path!r} cannot be written: {error!r}, while {doing}; give a "
                "path or URL that the client and every worker can write"
            ) from error

    def _renew(self) -> None:
        """Say again and again that the run lives, until it ends or the checkpoint is another's.

        A store that hangs counts as a store that raises, and is asked again when it has answered.
        """
        pause, failed = self.me.patience / BEATS, 0
        renewing: Future[bool] | None = None
        while not self._ended.wait(pause):
            if renewing is None or renewing.done():
                _, renewing = start_call(self._renew_once)
            try:
                if not renewing.result(pause):
                    return
                failed = 0
            except Exception as error:
                failed += 1
                self._say_failed(failed, error)

    def _renew_once(self) -> bool:
        """Renew the name; return False if the run has ended or the checkpoint is another's."""
        with self._writing:
            if self._ended.is_set() or not self._is_mine_or_nobodys():
                return False
            self.me = self.me.next()
            owner.write(self.path, self.me)
        return True

    def _say_failed(self, failed: int, error: Exception) -> None:
        """Say that the name was not renewed: as a warning when that happens twice in a row."""
        if failed != WARN_FAILED:
            logger.info("checkpoint=%r does not take the name of its owner: %r", self.path, error)
            return
        logger.warning(
            "checkpoint=%r does not take the name of its owner, this run, %d times in a row (%r): "
            "if it takes none for %g s (dbdask.owner) another run may take the checkpoint, and "
            "this one ends at its next snapshot; see that its store can be reached and written",
            self.path,
            failed,
            error,
            self.me.patience,
        )

    def _is_mine_or_nobodys(self) -> bool:
        found = owner.read(self.path)
        return found is None or found.token == self.me.token

    def confirm(self) -> bool:
        """Look whether the checkpoint is still this run's, and begin it anew if it was deleted.

        Returns whether it was.

        Raises
        ------
        CheckpointError
            Another run has taken it.
        """
        with checkpoint.writing(self.path):
            found = owner.read(self.path)
            if found is None:
                owner.write_first(self.path, self.me)
                found = owner.read(self.path)
        if found is not None and found.token != self.me.token:
            raise CheckpointError(
                f"checkpoint={self.path!r} was taken by {found}, because this one did not renew "
                f"its name for {self.me.patience:g} s (dbdask.owner), or because the checkpoint "
                "was deleted: this run ends, and leaves it alone; give each run its own path"
            )
        if checkpoint.is_begun(self.path):
            return False
        logger.warning("checkpoint=%r was deleted while the run trains: begun anew", self.path)
        checkpoint.begin_anew(self.path, self.settings)
        return True

    def release(self) -> None:
        """Leave the checkpoint to the next run; a store that hangs is left alone."""
        self._ended.set()
        try:
            call_within(
                deadline("store"),
                self._forget,
                what=f"checkpoint={self.path!r} to let go of its owner",
            )
        except Exception as error:
            logger.warning("checkpoint=%r still names its owner: %r", self.path, error)
        finally:
            owner.has_ended(self.me)

    def _forget(self) -> None:
        with self._writing:
            found = owner.read(self.path)
            if found is not None and found.token == self.me.token:
                owner.delete(self.path)
