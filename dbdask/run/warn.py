"""Warnings of a run, at the user's own line."""

import sys
import warnings

from dbdask.errors import TrainingWarning


def warn_user(message: str) -> None:
    """Warn where the user's code called into dbdask."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("dbdask."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TrainingWarning, stacklevel=level)
