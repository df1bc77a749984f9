"""The progress of a run: a bar on a terminal or in a notebook, else lines in the log."""

import logging
import math
import sys
import time
from importlib.util import find_spec
from typing import Any

from dbdask.metrics.history import Record

logger = logging.getLogger("dbdask")

LINE_SECONDS = 20.0


class Progress:
    """Shows the records of a run.

    Parameters
    ----------
    mode
        None shows a bar on a terminal or in a notebook and logs lines elsewhere; True always
        shows a bar, False nothing.
    total
        Examples, or iterations, of the whole run.
    unit
        "examples" or "iterations".
    """

    def __init__(self, mode: bool | None, total: int, unit: str = "examples") -> None:
        wants_bar = _is_interactive() if mode is None else mode
        self._logs = mode is None and not wants_bar
        self._bar = _make_bar(total, unit) if wants_bar else None
        self._total, self._unit = total, unit
        self._said = -math.inf
        self._began = time.monotonic()
        self._unsaid: str = ""  # the last record's line, until it is logged

    def begin(self) -> None:
        """Log that the run begins, because its first record may be minutes away."""
        if self._logs:
            log_line(f"the run begins: {self._total:,} {self._unit} in all")

    def update(self, record: Record) -> None:
        """Show a record."""
        done = record.examples if self._unit == "examples" else record.step
        if self._bar is not None:
            self._bar.update(max(0, done - self._bar.n))
            self._bar.set_postfix_str(summary(record), refresh=False)
        elif self._logs:
            share = 100 * done / max(1, self._total)
            self._unsaid = f"{share:.0f} % of the {self._unit}, {summary(record)}"
            if time.monotonic() - self._said >= LINE_SECONDS:
                self._say(self._unsaid)

    def wait(self) -> None:
        """Show that the run continues while there is no new record."""
        seconds = time.monotonic() - max(self._said, self._began)
        if self._logs and seconds >= LINE_SECONDS:
            waited = time.monotonic() - self._began
            self._say(self._unsaid or f"the run works, {waited:.0f} s after it began")

    def close(self) -> None:
        """Close the bar, or log the last record if it was not logged."""
        if self._bar is not None:
            self._bar.close()
        elif self._unsaid:
            self._say(self._unsaid)

    def _say(self, line: str) -> None:
        self._said, self._unsaid = time.monotonic(), ""
        log_line(line)


def log_line(line: str) -> None:
    """Log a line at INFO; if the program has not configured logging, to standard error.

    Without a configuration Python shows only warnings (`logging.lastResort`), and a batch job
    would log nothing for hours. If the program has set a handler or a higher level on the logger
    `dbdask` or above, that decides.
    """
    if logger.hasHandlers():
        logger.info(line)
        return
    hides = logger.level > logging.INFO or logger.root.level > logging.WARNING
    if not (hides or logger.disabled or logger.manager.disable >= logging.INFO):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        handler.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, line, (), None))


def summary(record: Record) -> str:
    """Return the state of a run in a few words.

    Examples
    --------
    >>> summary(Record(seconds=2.0, epoch=1, step=80, examples=9000, loss=0.25))
    'epoch 1, loss 0.25'
    """
    parts = [f"epoch {record.epoch}"]
    for name in ("loss", "validation_loss", "validation_accuracy", "validation_rmse"):
        value = getattr(record, name)
        if math.isfinite(value):
            parts.append(f"{name.replace('_', ' ')} {value:.4g}")
    return ", ".join(parts)


def _make_bar(total: int, unit: str) -> Any:
    """Return a progress bar: of widgets if the notebook has them, else of text."""
    if _in_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    file = sys.stdout if _in_notebook() else sys.stderr
    return tqdm(total=total, unit=f" {unit}", unit_scale=True, file=file)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _is_interactive() -> bool:
    return sys.stderr.isatty() or _in_notebook()
