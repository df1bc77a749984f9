"""What a comparison asks: ratios of two contestants within each round, and the values wanted.

A question is answered for whatever was measured. If a contestant failed, is not installed or was
not asked for, the answer says so.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._figures import Results, Spread, shown


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round; NaN if the divisor is zero or not finite.

    Examples
    --------
    >>> ratios([2.0, 6.0], [1.0, 0.0])
    [2.0, nan]
    """
    return [a / b if b and math.isfinite(b) else math.nan for a, b in zip(over, under, strict=True)]


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds; NaN if a round's ratio is not known.

    Examples
    --------
    >>> median_ratio([2.0, 6.0, 9.0], [1.0, 2.0, 9.0])
    2.0
    """
    return Spread.of(ratios(over, under)).median


@dataclass(frozen=True)
class Answer:
    """What was found: a line to print, and the same as values for JSON."""

    line: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two contestants, one divided by the other within each round.

    Parameters
    ----------
    over, under
        Their names. Of several that were measured, the one with the best median takes part.
    wanted
        The least that the median of the ratios should be, or the most if less is better. None:
        the ratio is only shown.
    less_is_better
        Whether the figure is a cost, such as seconds. Then differences are shown as well.
    figure
        The figure that is divided; None for the first one of each contestant.
    """

    over: str | tuple[str, ...]
    under: str | tuple[str, ...]
    wanted: float | None = None
    less_is_better: bool = False
    figure: str | None = None

    def answer(self, results: Results, absent: Mapping[str, str]) -> Answer:
        """Return the ratios of the rounds.

        Parameters
        ----------
        results
            The figures of the contestants that were measured in every round.
        absent
            Why the other ones have none, by name.
        """
        sides = [_names(side) for side in (self.over, self.under)]
        best = [self._best(results, names) for names in sides]
        title = " / ".join(
            _titled(names, one, sum(bool(results.get(name)) for name in names))
            for names, one in zip(sides, best, strict=True)
        )
        over, under = best
        if over is None or under is None:
            lacking = [n for names, one in zip(sides, best, strict=True) if not one for n in names]
            reasons = (f"{name} {absent.get(name, 'was not measured')}" for name in lacking)
            why = "; ".join(dict.fromkeys(reasons))
            return _unknown(title, {"over": over or self.over, "under": under or self.under}, why)
        return self._compared(title, results, over, under)

    def _compared(self, title: str, results: Results, over: str, under: str) -> Answer:
        figure = self.figure or next(iter(results[over][0]))
        values = [self._values(results, name) for name in (over, under)]
        found: dict[str, Any] = {"over": over, "under": under, "figure": figure}
        spread = Spread.of(ratios(*values))
        if math.isnan(spread.median):
            return _unknown(title, found, "a round has no ratio")
        told = f"{title}: {_told(spread, '{:.2f}')}"
        if self.less_is_better:
            more = Spread.of([a - b for a, b in zip(*values, strict=True)])
            found["difference"] = more.as_json()
            told += f", difference {shown(more.median)} ({shown(more.least)} to {shown(more.most)})"
        if self.figure or self.less_is_better:
            told += f" {figure}"
        return _judged(told, found, spread, self.wanted, self.less_is_better)

    def _values(self, results: Results, name: str) -> list[float]:
        return _column(results, name, self.figure or next(iter(results[name][0])))

    def _best(self, results: Results, names: Sequence[str]) -> str | None:
        """Return the contestant with the best median; None if none was measured."""
        medians = {
            name: statistics.median(self._values(results, name))
            for name in names
            if results.get(name)
        }
        choose = min if self.less_is_better else max
        return choose(medians, key=medians.__getitem__) if medians else None


@dataclass(frozen=True)
class Target:
    """A figure of one contestant, and the least that its median should be (None: only shown)."""

    contestant: str
    figure: str
    wanted: float | None = None

    def answer(self, results: Results, absent: Mapping[str, str]) -> Answer:
        """Return the figure's median and spread; the parameters are those of `Pair.answer`."""
        found = {"contestant": self.contestant, "figure": self.figure}
        title = f"{self.contestant}, {self.figure}"
        if not results.get(self.contestant):
            why = absent.get(self.contestant, "was not measured")
            return _unknown(title, found, f"{self.contestant} {why}")
        spread = Spread.of(_column(results, self.contestant, self.figure))
        return _judged(f"{title}: {_told(spread, '{:.3f}')}", found, spread, self.wanted, False)


def _names(side: str | tuple[str, ...]) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _titled(names: tuple[str, ...], best: str | None, measured: int) -> str:
    """Return how one side of a pair is called, of which so many contestants were measured."""
    if len(names) == 1:
        return names[0]
    return f"{best} (the best of {measured})" if best else " or ".join(names)


def _column(results: Results, name: str, figure: str) -> list[float]:
    return [figures.get(figure, math.nan) for figures in results[name]]


def _told(spread: Spread, form: str) -> str:
    median, least, most = map(form.format, (spread.median, spread.least, spread.most))
    return f"{median} ({least} to {most})"


def _unknown(title: str, found: Mapping[str, Any], why: str) -> Answer:
    return Answer(f"{title}: not known, {why}", {**found, "unknown": why})


def _judged(
    told: str, found: Mapping[str, Any], spread: Spread, wanted: float | None, is_most: bool
) -> Answer:
    """Return the answer, with whether the median keeps to what is wanted."""
    found = {**found, **spread.as_json(), "wanted": wanted}
    if wanted is None:
        return Answer(told, found)
    is_reached = spread.median <= wanted if is_most else spread.median >= wanted
    bound = f"wanted at {'most' if is_most else 'least'} {wanted:.2f}"
    answer = f"{told}; {bound}: {'reached' if is_reached else 'missed'}"
    return Answer(answer, {**found, "at": "most" if is_most else "least", "reached": is_reached})
