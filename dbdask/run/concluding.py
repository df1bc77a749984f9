"""The conclusion of a run: whether it has diverged, and what the user is told to change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbdask.data.examples import Examples
from dbdask.metrics.history import History, Record
from dbdask.metrics.magnitudes import Magnitude, merged, scale_warning
from dbdask.models.model import Model
from dbdask.run.outcome import Outcome
from dbdask.run.tally import Tally
from dbdask.run.warn import warn_user
from dbdask.status import Status

GROWTH = 10.0
"""A run has diverged if its last loss exceeds this many times max(first loss, blind loss)."""
JUDGED = ("epochs", "iterations", "tolerance", "precision")


class ScaleNotice:
    """Warns once, as soon as a record shows that the inputs should be scaled: a callback."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._has_warned = False

    def __call__(self, record: Record) -> None:
        if self._has_warned:
            return
        text = scale_warning(merged(list(self._tally.magnitudes.values())))
        if text:
            self._has_warned = True
            warn_user(text)


@dataclass(frozen=True)
class Setting:
    """The settings of a run that decide on the advice to its user."""

    algorithm: str
    is_scaled: bool
    path: str | None
    keeps_best: bool
    blind_loss: float
    """The loss of a blind model, which knows only the mean, or the number of classes."""
    has_snapshot: bool = True
    """Whether the checkpoint, if there is one, holds a snapshot to go on from."""


def setting_of(
    algorithm: str,
    model: Model,
    examples: Examples,
    tally: Tally,
    path: str | None,
    keep: str,
    has_snapshot: bool,
) -> Setting:
    """Return the settings that decide on the advice after a run."""
    inputs = examples.recipe.inputs
    is_scaled = any(inputs.is_scaled(number) for number in range(len(inputs.variables)))
    blind = blind_loss(model, examples, merged(list(tally.magnitudes.values())))
    return Setting(algorithm, is_scaled, path, keep == "best", blind, has_snapshot)


def blind_loss(model: Model, examples: Examples, magnitudes: Sequence[Magnitude]) -> float:
    """Return about the loss of a blind model, summed over its outputs."""
    if examples.has_labels:
        classes = max(2, len(examples.output_classes or ()))
        one_vs_all = getattr(model, "loss", None) == "logistic"
        return classes * math.log(2) if one_vs_all else math.log(classes)
    targets = [one for one in magnitudes if one.role == "targets"]
    elements = math.prod(examples.target_shape or ())
    if not targets:
        return 0.5 * elements
    return 0.5 * elements * max(1.0, max(one.typical**2 for one in targets))


def conclude(outcome: Outcome, setting: Setting) -> Outcome:
    """Return the outcome with its true status, and warn if that is not ok.

    The message of a status that is not ok says what to change. That of an interrupted run does
    not, because its user knows why.
    """
    if setting.keeps_best and not outcome.is_best:
        warn_user(
            'keep="best" found no best parameters, because no validation loss since the last '
            "snapshot was finite: the result has the last ones; see that the validation examples, "
            "and the model's losses on them, are finite"
        )
    status = judged(outcome, setting)
    if status.ok:
        return outcome
    advice = what_to_change(status.reason, setting)
    advised = Status(status.reason, f"{status.message}; {advice}")
    warn_user(f"the run did not end as it was asked to: {advised}")
    return replace(outcome, status=status if status.reason == "interrupted" else advised)


def judged(outcome: Outcome, setting: Setting) -> Status:
    """Return the status, which is `diverged` even if every epoch was done."""
    status, history = outcome.status, outcome.history
    if status.reason not in JUDGED or not history.records:
        return status
    if history.ends_refused:
        return Status("diverged", _ends_refused(history))
    vector = outcome.parameters
    if isinstance(vector, np.ndarray) and not np.isfinite(vector).all():
        return Status("diverged", "the parameters are not finite any more")
    grown = _growth(history, setting.blind_loss, is_best=outcome.is_best)
    return Status("diverged", grown) if grown else status


def divergence(history: History, blind: float) -> str:
    """Return why a run has diverged, as far as its history shows now; "" if it has not.

    The trained parameters are judged, not the best ones so far.
    """
    if not history.records:
        return ""
    if history.ends_refused:
        return _ends_refused(history)
    return _growth(history, blind, is_best=False)


def _ends_refused(history: History) -> str:
    refused = history.records[-1].refused
    return f"{refused} gradients were refused as not finite, and the last ones among them"


def _growth(history: History, blind: float, *, is_best: bool) -> str:
    first, last = _first_and_last(history, is_best)
    if math.isinf(last):
        return "the loss is not finite any more"
    grown = last > GROWTH * max(first, blind)
    return f"the loss grew from {first:.3g} to {last:.3g}" if grown else ""


def _first_and_last(history: History, is_best: bool) -> tuple[float, float]:
    """Return the loss at the beginning, and that of the parameters that the result has."""
    losses = history.column("loss")
    losses = losses[~np.isnan(losses)]
    if not len(losses):
        return math.nan, math.nan
    first = losses[0] if math.isnan(history.first_loss) else history.first_loss
    validated = history.column("validation_loss")
    validated = validated[np.isfinite(validated)]  # others are never best
    best = is_best and len(validated) > 0
    return float(first), float(validated.min() if best else losses[-1])


def what_to_change(reason: str, setting: Setting) -> str:
    """Return the remedy for a run whose status is not ok.

    Examples
    --------
    >>> what_to_change("interrupted", Setting("downpour", True, None, False, 0.5))
    'the result has the parameters of that moment: go on from them with parameters=result'
    """
    scale = "" if setting.is_scaled else ", and scale the inputs with examples.standardize()"
    if reason == "interrupted":
        if setting.path is None:
            how = "go on from them with parameters=result"
        else:
            how = f"go on with checkpoint={setting.path!r}, resume=True"
        return f"the result has the parameters of that moment: {how}"
    if reason == "search_failed":
        return (
            "try a model of your own with dbdask.check_model(model, examples): its gradient may "
            f"not be that of its loss; or begin with other parameters={scale}"
        )
    why = "they are not finite: " if reason == "bad_gradients" else ""
    if setting.algorithm == "sandblaster":
        where = "" if setting.path is None else ", in another checkpoint="
        return f"{why}begin with other parameters=, or another seed={where}{scale}"
    change = f"{why}lower the learning rate of optimizer=, or give clip_norm=1.0{scale}"
    if setting.path is None:
        return change
    if not setting.has_snapshot:
        return (
            f"{change}; the checkpoint was deleted during the run and holds no snapshot: begin "
            f'anew with checkpoint={setting.path!r}, resume="auto"'
        )
    return (
        f"{change}; the checkpoint keeps the last good snapshot: go on from it with "
        f"checkpoint={setting.path!r}, resume=True"
    )
