"""Callbacks that take long: a run whose user's thread stands in one says so, and where."""

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dbdask.metrics.history import Record
from dbdask.schedule.awake import AwakeClock

logger = logging.getLogger("dbdask")

WARN_SECONDS = 20.0
LOOK_SECONDS = 0.5
MOST_PLACES = 4  # in a message

Callback = Callable[[Record], object]


class _Call(NamedTuple):
    """A call of a callback that is under way."""

    number: int
    name: str


class CallbackWatch:
    """Says every `WARN_SECONDS` which callback is under way, and where it stands.

    A run goes on while a callback does, but it cannot end: its result, or its error, comes out on
    the thread that the callback holds.
    """

    def __init__(self) -> None:
        self._call: _Call | None = None
        self._calls = self._seen = 0
        self._since = self._said = 0.0  # of the call that was seen
        self._ended = threading.Event()
        self._thread = threading.get_ident()

    def __enter__(self) -> "CallbackWatch":
        threading.Thread(target=self._look, daemon=True, name="dbdask-callbacks").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._ended.set()

    def over(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """Return the callbacks, each of them watched."""
        return [self._watched(callback) for callback in callbacks]

    def _watched(self, callback: Callback) -> Callback:
        def call(record: Record) -> object:
            self._calls += 1
            self._call = _Call(self._calls, getattr(callback, "__qualname__", repr(callback)))
            try:
                return callback(record)
            finally:
                self._call = None

        return call

    def _look(self) -> None:
        clock = AwakeClock()
        while not self._ended.wait(LOOK_SECONDS):
            self.look(clock.seconds())

    def look(self, now: float) -> None:
        """Look which call is under way, and say so if it is due; `now` is the time in seconds."""
        call = self._call
        if call is None or call.number != self._seen:
            self._seen, self._since, self._said = call.number if call else 0, now, now
        elif now - self._said >= WARN_SECONDS:
            self._said = now
            logger.warning(
                "the callback %s has taken %.0f s, and the run cannot end before it does; it is "
                "at %s",
                call.name,
                now - self._since,
                self._place(),
            )

    def _place(self) -> str:
        """Say where the thread of the callbacks stands, from the callback on."""
        frame = sys._current_frames().get(self._thread)
        stack = traceback.extract_stack(frame) if frame is not None else []
        calls = [n for n, at in enumerate(stack) if (at.filename, at.name) == (__file__, "call")]
        places = stack[max(calls, default=-1) + 1 :][:MOST_PLACES]
        return " > ".join(f"{Path(p.filename).name}:{p.lineno} ({p.name})" for p in places)
