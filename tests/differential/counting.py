"""Counts of what was drawn and of what came of it, over one run of seeds and over many."""

from collections import Counter
from collections.abc import Iterable, Mapping

from .trial import Trial, run

Counts = dict[str, Counter[str]]
COUNTED = ("verdicts", "given", "operations", "errors", "written")


def count(trials: Iterable[Trial]) -> Counts:
    """Count verdicts, ways of giving the data, operations and errors."""
    found: Counts = {name: Counter() for name in COUNTED}
    for trial in trials:
        found["verdicts"][trial.verdict] += 1
        if trial.predicted:
            found["verdicts"][f"prediction {trial.predicted}"] += 1
        if trial.giver is not None:
            found["given"][f"{trial.giver.storage}, {trial.giver.way}"] += 1
        found["operations"].update(operation.name for operation in trial.operations)
        if trial.error:
            found["errors"][trial.error] += 1
        found["written"].update(trial.written)
    return found


def add(total: Counts, more: Mapping[str, Mapping[str, int]]) -> None:
    """Add counts to counts."""
    for name, counts in more.items():
        total.setdefault(name, Counter()).update(counts)


def report(counts: Counts) -> str:
    """Return the counts in words, the most frequent first."""
    lines = []
    for name, counted in counts.items():
        listed = ", ".join(f"{what} {number}" for what, number in counted.most_common())
        lines.append(f"{name} ({counted.total()}): {listed or 'none'}")
    return "\n".join(lines)


def spans(ranges: Iterable[tuple[int, int]]) -> str:
    """Return ranges of seeds, each its first and the one after its last, as few as possible."""
    joined: list[list[int]] = []
    for first, stop in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(stop, joined[-1][1])
        else:
            joined.append([first, stop])
    return ", ".join(f"{first}-{stop - 1}" for first, stop in joined)


def run_all(seeds: Iterable[int], predict_every: int = 1) -> tuple[list[Trial], Counts]:
    """Run seeds; return the trials that went wrong, and the counts of all.

    Of `predict_every` seeds one predicts.
    """
    wrong: list[Trial] = []
    counts: Counts = {}
    for seed in seeds:
        trial = run(seed, predict=seed % predict_every == 0)
        add(counts, count([trial]))
        if trial.wrong:
            wrong.append(trial)
    return wrong, counts
