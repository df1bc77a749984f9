"""Tables with drawn columns, rules and parts, against a loop over their rows."""

import pickle

import numpy as np
import pandas as pd
import pytest

import dbdask

LABELS = {
    "text": lambda rng, rows: rng.choice(["b", "a", "zz", "c"], rows).astype(object),
    "category": lambda rng, rows: pd.Categorical(rng.choice(["x", "y"], rows), ["y", "x", "z"]),
    "whole": lambda rng, rows: rng.choice([3, 1, 2], rows),
    "number": lambda rng, rows: rng.choice([0.5, 7.0], rows),
}


def draw(rng):
    """A frame whose target `n` numbers the rows, how its labels are shown, and the rules."""
    rows = int(rng.integers(8, 60))
    frame, shown = pd.DataFrame({"n": np.arange(rows, dtype="f8")}), {}
    for number in range(int(rng.integers(1, 4))):
        kind = str(rng.choice(list(LABELS)))
        frame[f"{kind}{number}"] = LABELS[kind](rng, rows)
        shown[f"{kind}{number}"] = str(rng.choice(["one-hot", "codes"]))
    for number in range(int(rng.integers(0, 3))):
        frame[f"x{number}"] = rng.normal(size=rows).astype(rng.choice(["f4", "f8"]))
    inputs = [str(name) for name in rng.permutation([c for c in frame if c != "n"])]
    for name in inputs:
        if rng.random() < 0.4 and frame[name].dtype.kind not in "iu":
            frame.loc[rng.random(rows) < 0.15, name] = None
    rules = {name: str(rng.choice(["drop", "mask"])) for name in inputs}
    return frame, inputs, shown, rules


def by_hand(frame, inputs, shown, rules, labels, means):
    """The inputs of every row that is kept, by its number."""
    found = {}
    for _, row in frame.iterrows():
        parts = []
        for name in inputs:
            absent = pd.isna(row[name])
            if absent and rules[name] == "drop":
                break
            if name not in shown:
                parts.append([means[name] if absent else row[name]])
                continue
            hot = [not absent and row[name] == label for label in labels[name]]
            parts.append(
                hot if shown[name] == "one-hot" else [1 + hot.index(True) if any(hot) else 0]
            )
        else:
            found[int(row["n"])] = np.concatenate(parts).astype("f4")
    return found


def fed(examples):
    inputs, targets, _ = examples.batch(len(examples))
    return {int(n): row.ravel() for n, row in zip(targets, inputs, strict=True)}


def check(seed):
    rng = np.random.default_rng(seed)
    frame, inputs, shown, rules = draw(rng)
    examples = dbdask.Examples.from_dataframe(
        frame, inputs=inputs, targets="n", categories=shown, missing=rules
    )
    split_seed = int(rng.integers(0, 9)) if rng.random() < 0.5 else None
    train, held_out = examples.split(0.6, seed=split_seed)
    chosen = train.recipe.selection.spans[0].positions()
    here = frame.iloc[chosen]
    if any(here[name].isna().all() for name in inputs):
        return 0
    train = train.fit_categories()
    labels = {name: sorted(here[name].dropna().unique()) for name in shown}
    assert train.categories == labels, seed
    means = {name: here[name].astype("f8").mean() for name in inputs if name not in shown}
    wanted = by_hand(frame, inputs, shown, rules, labels, means)
    total = 0
    prepared = held_out.prepared_like(train)
    for part, rows in ((train, chosen), (prepared, np.setdiff1d(frame.index, chosen))):
        part = pickle.loads(pickle.dumps(part)).with_classes(None)
        expected = {row: wanted[row] for row in rows.tolist() if row in wanted}
        found = fed(part) if expected else {}
        assert sorted(found) == sorted(expected), seed
        for row, values in found.items():
            np.testing.assert_allclose(values, expected[row], rtol=2e-6, err_msg=f"{seed}")
        total += len(found)
    return total


def test_tables_are_shown_as_a_loop_shows_them():
    counts = [check(seed) for seed in range(60)]
    assert sum(counts) > 1200 and sum(map(bool, counts)) > 50


@pytest.mark.slow
def test_many_tables_are_shown_as_a_loop_shows_them():
    assert sum(check(seed) for seed in range(60, 1500)) > 30_000
