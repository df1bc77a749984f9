"""Counts of what was drawn and of what came of it, over one run of seeds and over many."""

from collections import Counter
from collections.abc import Iterable, Mapping

from .trial import Trial, run

Counts = dict[str, Counter[str]]


def count(trials: Iterable[Trial]) -> Counts:
    """Count verdicts, ways of giving the data, operations and errors."""
    found: Counts = {name: Counter() for name in ("verdicts", "given", "operations", "errors")}
    for trial in trials:
        found["verdicts"][trial.verdict] += 1
        if trial.predicted:
            found["verdicts"][f"prediction {trial.predicted}"] += 1
        if trial.giver is not None:
            found["given"][f"{trial.giver.storage}, {trial.giver.way}"] += 1
        found["operations"].update(operation.name for operation in trial.operations)
        if trial.error:
            found["errors"][trial.error] += 1
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


def run_all(seeds: Iterable[int]) -> tuple[list[Trial], Counts]:
    """Run seeds; return the trials that went wrong, and the counts of all."""
    wrong: list[Trial] = []
    counts: Counts = {}
    for seed in seeds:
        trial = run(seed)
        add(counts, count([trial]))
        if trial.wrong:
            wrong.append(trial)
    return wrong, counts
