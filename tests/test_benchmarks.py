"""What the comparisons with other tools share: order, medians, ratios, tables, files."""

import argparse
import json
import math
from itertools import groupby
from pathlib import Path

import pytest

import dbdask
from benchmarks import paper_image_network
from benchmarks._figures import shown
from benchmarks._ratios import Pair, Target, median_ratio
from benchmarks._side_by_side import Contestant, Report, excluded, interleaved, parser, table


def contestant(name, turns, needs=()):
    """A contestant that notes its turns, and whose figure is their number so far."""

    def measure():
        turns.append(name)
        return {"rate": float(len(turns))}

    return Contestant(name, measure, needs)


def figures(*values):
    return [{"rate": value} for value in values]


def test_every_round_begins_with_another_contestant():
    turns = []
    interleaved([contestant(name, turns) for name in "abc"], 4)
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"


def test_results_are_in_the_order_of_the_contestants():
    turns = []
    results, failed = interleaved([contestant(name, turns) for name in "ab"], 2)
    assert not failed
    assert results == {"a": figures(1.0, 4.0), "b": figures(2.0, 3.0)}
    assert list(results) == ["a", "b"]


def test_who_fails_takes_no_further_part(capsys):
    turns = []

    def fail():
        turns.append("broken")
        raise OSError("no space")

    results, failed = interleaved([Contestant("broken", fail), contestant("whole", turns)], 3)
    assert turns == ["broken", "whole", "whole", "whole"]
    assert list(results) == ["whole"] and failed == {"broken": "OSError: no space"}
    assert "broken: failed, OSError: no space" in capsys.readouterr().out


def test_the_median_of_ratios_is_not_the_ratio_of_medians():
    assert median_ratio([1.0, 10.0, 100.0], [1.0, 20.0, 50.0]) == 1.0
    assert median_ratio([10.0, 1.0], [20.0, 4.0]) == pytest.approx(0.375)


def test_a_ratio_to_what_never_came_is_not_known():
    assert math.isnan(median_ratio([1.0, 2.0], [1.0, math.inf]))
    assert median_ratio([math.inf, 2.0, 3.0], [1.0, 1.0, 1.0]) == 3.0


def test_a_ratio_to_nothing_is_not_known():
    assert math.isnan(median_ratio([1.0, 2.0], [1.0, 0.0]))


def test_a_ratio_needs_as_many_rounds_of_both():
    with pytest.raises(ValueError):
        median_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "-"),
        (math.inf, "never"),
        (1234567.0, "1,234,567"),
        (100.0, "100"),
        (99.94, "99.9"),
        (0.5, "0.500"),
        (0.0, "0.000"),
    ],
)
def test_figures_are_shown_with_three_digits(value, text):
    assert shown(value) == text


def test_a_table_has_median_spread_and_ratio():
    results = {"limit": figures(100.0, 300.0, 200.0), "ours": figures(50.0, 270.0, 100.0)}
    assert table(results, "limit").splitlines() == [
        "       rate  least  most  ratio",
        "limit   200    100   300   1.00",
        "ours    100   50.0   270   0.50",
    ]


def test_a_table_shows_the_other_figures_by_their_median():
    results = {
        "ours": [{"seconds": 1.0, "accuracy": 0.8}, {"seconds": 3.0, "accuracy": 0.9}],
    }
    assert table(results).splitlines() == [
        "      seconds  least   most  accuracy",
        "ours    2.000  1.000  3.000     0.850",
    ]


def test_a_table_has_a_column_for_every_figure_of_any_contestant():
    results = {"a": [{"seconds": 1.0}], "b": [{"seconds": 2.0, "first call": 5.0}]}
    assert table(results, "a").splitlines() == [
        "   seconds  least   most  ratio  first call",
        "a    1.000  1.000  1.000   1.00           -",
        "b    2.000  2.000  2.000   2.00       5.000",
    ]


def test_a_table_leaves_the_ratio_out_without_its_base():
    assert "ratio" not in table({"ours": figures(1.0)}, "limit")


def test_what_never_came_is_the_largest():
    rows = table({"ours": figures(1.0, math.inf, 2.0)}).splitlines()
    assert rows[1].split() == ["ours", "2.000", "1.000", "never"]


def test_who_is_not_installed_is_named(capsys):
    there = contestant("here", [])
    absent = contestant("away", [], ("no_such_package", "nor_this"))
    why = "needs no_such_package and nor_this, which are not installed"
    assert excluded([there, absent], None) == {"away": why}
    assert capsys.readouterr().out == f"away: skipped, it {why}\n"


def test_contestants_are_chosen_by_parts_of_their_names(capsys):
    found = [contestant(name, []) for name in ("ray, 1 server", "ray, 2 servers", "torch")]
    absent = contestant("away", [], ("no_such_package",))
    left_out = excluded([*found, absent], ["2 s", "tor"])
    assert left_out == dict.fromkeys(["ray, 1 server", "away"], "was not asked for")
    assert capsys.readouterr().out == ""


# Pairs

RATES = {"ours": figures(8.0, 30.0, 10.0), "theirs": figures(10.0, 10.0, 20.0)}


def test_a_pair_has_the_median_and_the_spread_of_the_ratios_of_the_rounds():
    answer = Pair("ours", "theirs", 0.75).answer(RATES, {})
    assert answer.line == ("ours / theirs: 0.80 (0.50 to 3.00); wanted at least 0.75: reached")
    assert answer.values == {
        "over": "ours",
        "under": "theirs",
        "figure": "rate",
        "median": 0.8,
        "least": 0.5,
        "most": 3.0,
        "wanted": 0.75,
        "at": "least",
        "reached": True,
    }


def test_a_pair_that_nothing_is_wanted_of_is_shown():
    answer = Pair("ours", "theirs").answer(RATES, {})
    assert answer.line == "ours / theirs: 0.80 (0.50 to 3.00)"
    assert answer.values["wanted"] is None and "reached" not in answer.values


def test_of_costs_less_is_wanted_and_the_difference_is_kept():
    answer = Pair("ours", "theirs", 0.75, less_is_better=True).answer(RATES, {})
    assert answer.line == (
        "ours / theirs: 0.80 (0.50 to 3.00), difference -2.000 (-10.0 to 20.0) rate; "
        "wanted at most 0.75: missed"
    )
    assert answer.values["difference"] == {"median": -2.0, "least": -10.0, "most": 20.0}
    assert answer.values["at"] == "most" and answer.values["reached"] is False


@pytest.mark.parametrize(("less", "best"), [(False, "quick"), (True, "slow")])
def test_of_several_contestants_the_best_takes_part(less, best):
    results = {"slow": figures(1.0, 9.0, 1.0), "quick": figures(2.0, 2.0, 2.0)} | RATES
    pair = Pair(("slow", "quick", "away"), "theirs", less_is_better=less)
    answer = pair.answer(results, {"away": "failed"})
    assert answer.values["over"] == best
    assert answer.line.startswith(f"{best} (the best of 2) / theirs: ")


def test_a_pair_may_divide_another_figure_than_the_first():
    results = {
        name: [{"rate": 1.0, "portions": number}] for name, number in (("a", 3.0), ("b", 2.0))
    }
    assert (
        Pair("a", "b", figure="portions")
        .answer(results, {})
        .line.endswith("1.50 (1.50 to 1.50) portions")
    )


def test_a_pair_without_one_of_its_contestants_says_why():
    reasons = {"theirs": "failed, OSError: no space", "b": "was not asked for"}
    answer = Pair("ours", ("theirs", "b", "c"), 0.7).answer({"ours": figures(1.0)}, reasons)
    why = "theirs failed, OSError: no space; b was not asked for; c was not measured"
    assert answer.line == f"ours / theirs or b or c: not known, {why}"
    assert answer.values == {"over": "ours", "under": ("theirs", "b", "c"), "unknown": why}


def test_a_pair_with_a_round_that_never_came_is_not_known():
    answer = Pair("ours", "theirs", 1.0).answer(
        {"ours": figures(1.0, 2.0), "theirs": figures(1.0, math.inf)}, {}
    )
    assert answer.line == "ours / theirs: not known, a round has no ratio"
    assert "reached" not in answer.values


def test_a_target_is_a_figure_of_one_contestant():
    results = {"64": [{"portions": 1.0, "busy": 0.96}, {"portions": 1.0, "busy": 0.94}]}
    answer = Target("64", "busy", 0.95).answer(results, {})
    assert answer.line == "64, busy: 0.950 (0.940 to 0.960); wanted at least 0.95: reached"
    missing = Target("200", "busy").answer(results, {"200": "was not asked for"})
    assert missing.line == "200, busy: not known, 200 was not asked for"


# Reports


def test_a_report_keeps_every_figure_and_what_it_ran_on(tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = parser("Compare.\n\nMore.").parse_args(["--rounds", "2", "--json", str(path)])
    report = Report("compare", options, ("numpy", "no_such_package"))
    report.add("a table", {"ours": figures(1.0, math.inf)}, "ours")
    report.compare("another", [contestant("theirs", [])])
    kept = json.loads(path.read_text())
    assert kept["settings"] == {"rounds": 2, "only": None}
    assert [made["title"] for made in kept["tables"]] == ["a table", "another"]
    assert kept["tables"][0]["rounds"] == {"ours": [{"rate": 1.0}, {"rate": None}]}
    assert "numpy" in kept["versions"] and "no_such_package" not in kept["versions"]
    assert kept["machine"]["cores"] >= 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("a table; medians, load ")
    report.end()


def test_a_report_answers_its_pairs_though_contestants_fail_or_are_missing(tmp_path, capsys):
    def fail():
        raise OSError("no space")

    path = tmp_path / "new" / "figures.json"
    command = ["--rounds", "2", "--json", str(path), "--only", "ours", "broken", "away"]
    report = Report("compare", parser("Compare.").parse_args(command))
    entrants = [
        contestant("ours", []),
        Contestant("broken", fail),
        contestant("away", [], ("no_such_package",)),
        contestant("unasked", []),
    ]
    others = ("ours", "broken", "away", "unasked")
    pairs = [Pair("ours", other, 0.5) for other in others]
    results = report.compare("a table", entrants, "unasked", pairs, [Target("broken", "rate", 1.0)])
    assert list(results) == ["ours"]
    (kept,) = json.loads(path.read_text())["tables"]
    assert kept["pairs"][0]["median"] == 1.0 and kept["pairs"][0]["reached"]
    unknown = [one["unknown"] for one in (*kept["pairs"][1:], *kept["targets"])]
    assert unknown == [
        "broken failed, OSError: no space",
        "away needs no_such_package, which is not installed",
        "unasked was not asked for",
        "broken failed, OSError: no space",
    ]
    assert kept["failed"] == {"broken": "OSError: no space"}
    printed = capsys.readouterr().out
    assert "  ours / ours: 1.00 (1.00 to 1.00); wanted at least 0.50: reached\n" in printed
    assert all(f": not known, {why}\n" in printed for why in unknown)


def test_a_report_of_which_nothing_is_left_still_answers(tmp_path):
    path = tmp_path / "figures.json"
    options = parser("Compare.").parse_args(["--only", "nothing", "--json", str(path)])
    report = Report("compare", options)
    report.compare("a table", [contestant("ours", [])], "ours", [Pair("ours", "ours")])
    report.keep("more", {"a": math.nan})
    kept = json.loads(path.read_text())
    assert kept["tables"][0]["pairs"][0]["unknown"] == "ours was not asked for"
    assert kept["more"] == {"a": None}


def test_less_than_one_round_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser("Compare.").parse_args(["--rounds", "0"])
    assert "--rounds" in capsys.readouterr().err


def test_a_report_with_a_failure_ends_with_an_error(capsys):
    report = Report("compare", argparse.Namespace(json=None, rounds=1, only=None))
    report.compare("a table", [Contestant("broken", lambda: {"rate": 1 / 0})])
    with pytest.raises(SystemExit, match="failed: broken"):
        report.end()


def test_the_papers_image_network_has_as_many_parameters_as_the_documents_derive():
    """By the description of the network, and by that table alone."""
    network = paper_image_network.network()
    text = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()
    start = text.index("| layer | output | parameters | |")
    rows = [row.strip("|").split("|") for row in text[start:].split("\n\n")[0].split("\n")[2:]]
    *layers, (_, _, _, in_all) = rows
    for (name, output, formula, count), shape in zip(layers, filtered(network), strict=True):
        assert math.prod(shape) == math.prod(map(int, output.replace(",", "").split("x")))
        python = formula.replace(",", "").replace("x", "*").replace("^", "**").strip()
        assert eval(python or "0") == int(count.replace(",", "").strip() or 0), name
    total = sum(int(count.replace(",", "").strip() or 0) for *_, count in layers)
    assert int(in_all.replace(",", "")) == total == 1_695_645_044
    again = dbdask.Network.from_description(network.description())
    assert network.parameter_count == again.parameter_count == total


def filtered(network):
    """The output shape of each row of the table: contrast normalisation keeps that of its pool."""
    shapes = [stage.output_shape for stage in network.stages]
    return [shape for shape, _ in groupby(shapes)]
