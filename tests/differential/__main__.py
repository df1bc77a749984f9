"""Reproduce seeds: `python -m tests.differential --seed 17 --count 1`."""

import argparse
import sys
from collections import Counter

from .trial import run


def main() -> int:
    """Run the seeds asked for; print each that is wrong, and what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--quiet", action="store_true", help="a line for each that is wrong")
    given = parser.parse_args()
    verdicts: Counter[str] = Counter()
    for seed in range(given.seed, given.seed + given.count):
        trial = run(seed)
        verdicts[trial.verdict] += 1
        if trial.predicted:
            verdicts[f"prediction {trial.predicted}"] += 1
        if given.quiet and trial.wrong:
            print(f"seed {seed}: {trial.wrong[:300]}")
        elif trial.wrong or given.count == 1:
            print(f"{trial.describe()}\n  {trial.wrong}\n")
    print(dict(verdicts))
    return 1 if verdicts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
