"""Contestants side by side: interleaved rounds, medians, ratios, a table, and a file of JSON.

A contestant's turn returns figures by name, of which the first is compared. In every round each
contestant has its turn, and every round begins with another one. A table is followed by the ratios
and the targets that its program asks for.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._figures import Figures, Results, aligned, shown
from benchmarks._ratios import Pair, Target, median_ratio

PACKAGES = ("dbdask", "numpy", "dask", "distributed", "zarr", "xarray")


@dataclass(frozen=True)
class Contestant:
    """Something that is measured, and the packages that it needs."""

    name: str
    measure: Callable[[], Figures]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def parser(description: str | None, *, chooses: bool = True) -> argparse.ArgumentParser:
    """Return a command line with the options that programs share; `chooses` adds `--only`."""
    found = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    found.add_argument("--rounds", type=at_least_one, default=5)
    found.add_argument("--json", type=Path, help="write every figure there")
    found.set_defaults(only=None)
    if chooses:
        found.add_argument(
            "--only", nargs="+", metavar="TEXT", help="only contestants whose names contain a TEXT"
        )
    return found


def at_least_one(text: str) -> int:
    """Return the whole number of a command line; raise ValueError if it is below 1."""
    number = int(text)
    if number < 1:
        raise ValueError(f"must be at least 1, got {number}")
    return number


def excluded(contestants: Sequence[Contestant], only: Sequence[str] | None) -> dict[str, str]:
    """Return why contestants take no part, by name; print which are asked for and not installed."""
    reasons = {}
    for contestant in contestants:
        if only and not any(text in contestant.name for text in only):
            reasons[contestant.name] = "was not asked for"
        elif contestant.missing:
            names = " and ".join(contestant.missing)
            verb = "is" if len(contestant.missing) == 1 else "are"
            reasons[contestant.name] = f"needs {names}, which {verb} not installed"
            print(f"{contestant.name}: skipped, it {reasons[contestant.name]}")
    return reasons


def interleaved(
    contestants: Sequence[Contestant], rounds: int
) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Measure every contestant once in each round, and print the figures as they come.

    Returns
    -------
    The figures of the rounds by contestant, and what went wrong by contestant: one whose turn
    raises takes no further part, and has no results.
    """
    results: dict[str, list[Figures]] = {contestant.name: [] for contestant in contestants}
    failed: dict[str, str] = {}
    for number in range(rounds):
        first = number % max(1, len(contestants))
        for contestant in [*contestants[first:], *contestants[:first]]:
            name = contestant.name
            if name in failed:
                continue
            try:
                figures = contestant.measure()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                print(f"  round {number + 1}, {name}: failed, {failed[name]}", flush=True)
                continue
            results[name].append(figures)
            told = ", ".join(f"{what} {shown(value)}" for what, value in figures.items())
            print(f"  round {number + 1}, {name}: {told}", flush=True)
    return {name: found for name, found in results.items() if name not in failed}, failed


def table(results: Results, base: str | None = None) -> str:
    """Return the table of some results: medians, the spread, and ratios to a contestant.

    Parameters
    ----------
    results
        The figures of the rounds, by contestant. The first figure has its spread shown, and is
        compared; of the others the median is shown.
    base
        The contestant that the first figures are divided by, round by round; None, or one that
        did not take part, leaves the column out.
    """
    names = list(dict.fromkeys(n for rounds in results.values() for f in rounds for n in f))
    compared = base in results
    first = [names[0], "least", "most", *(["ratio"] if compared else [])]
    rows = [["", *first, *names[1:]]]
    for name, rounds in results.items():
        values = [figures[names[0]] for figures in rounds]
        cells = [statistics.median(values), min(values), max(values)]
        row = [name, *map(shown, cells)]
        if compared:
            assert base is not None
            ratio = median_ratio(values, [figures[names[0]] for figures in results[base]])
            row.append("-" if math.isnan(ratio) else f"{ratio:.2f}")
        others = [statistics.median(f.get(n, math.nan) for f in rounds) for n in names[1:]]
        rows.append([*row, *map(shown, others)])
    return aligned(rows)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in dict.fromkeys([*PACKAGES, *packages]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what is known of this machine."""
    processor = platform.processor() or platform.machine()
    memory = math.nan
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            memory = int(line.split()[1]) / 2**20
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class Report:
    """Measures contestants, prints a table of them, and writes all figures after each table.

    Parameters
    ----------
    program
        The program's name.
    options
        Its command line, which `parser` made.
    packages
        The peers' packages, whose versions are noted.
    """

    def __init__(
        self, program: str, options: argparse.Namespace, packages: Sequence[str] = ()
    ) -> None:
        self._options = options
        settings = {name: _plain(value) for name, value in vars(options).items() if name != "json"}
        self.kept: dict[str, Any] = {
            "program": program,
            "machine": machine(),
            "versions": versions(packages),
            "settings": settings,
            "tables": [],
        }

    def compare(
        self,
        title: str,
        contestants: Sequence[Contestant],
        base: str | None = None,
        pairs: Sequence[Pair] = (),
        targets: Sequence[Target] = (),
    ) -> Results:
        """Measure those contestants that are asked for and installed; keep their table.

        Returns
        -------
        The figures of the contestants that were measured in every round.
        """
        absent = excluded(contestants, self._options.only)
        here = [contestant for contestant in contestants if contestant.name not in absent]
        results, failed = interleaved(here, self._options.rounds)
        self.add(title, results, base, failed=failed, absent=absent, pairs=pairs, targets=targets)
        return results

    def add(
        self,
        title: str,
        results: Results,
        base: str | None = None,
        *,
        failed: Mapping[str, str] | None = None,
        absent: Mapping[str, str] | None = None,
        pairs: Sequence[Pair] = (),
        targets: Sequence[Target] = (),
    ) -> None:
        """Print a table of some results, then the answers to pairs and targets; keep them all.

        Parameters
        ----------
        title, results, base
            Of the table.
        failed
            What went wrong with contestants that failed, by name.
        absent
            Why contestants took no part, by name.
        pairs, targets
            What is asked of the results.
        """
        load = os.getloadavg()[0]
        print(f"{title}; medians, load {load:.1f}")
        if results:
            print(table(results, base))
        failed, absent = dict(failed or {}), dict(absent or {})
        reasons = absent | {name: f"failed, {why}" for name, why in failed.items()}
        made = {"title": title, "base": base, "load": load, "rounds": _plain(results)}
        made |= {"failed": failed, "absent": absent}
        for kind, questions in (("pairs", pairs), ("targets", targets)):
            answers = [question.answer(results, reasons) for question in questions]
            for answer in answers:
                print(f"  {answer.line}")
            made[kind] = _plain([answer.values for answer in answers])
        sys.stdout.flush()
        self.kept["tables"].append(made)
        self.write()

    def write(self) -> None:
        """Write what is kept, if a file was asked for; its folder is made."""
        path = self._options.json
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.kept, indent=1) + "\n")

    def keep(self, name: str, value: object) -> None:
        """Keep a value beside the tables."""
        self.kept[name] = _plain(value)
        self.write()

    def end(self) -> None:
        """Exit with an error if a contestant has failed."""
        failed = [name for made in self.kept["tables"] for name in made["failed"]]
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}")


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
