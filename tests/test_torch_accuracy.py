"""The comparison of accuracies with plain PyTorch, made small."""

import json

import pytest

pytest.importorskip("torch", reason="needs PyTorch: dbdask[torch]")
pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")

from benchmarks.torch_accuracy import main, verdicts, with_points


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_one_replica_learns_as_well_as_plain_pytorch(tmp_path, capsys):
    path = tmp_path / "figures.json"
    small = ["--digits", "--rows", "1000", "--epochs", "3", "--batch", "32", "--seeds", "1"]
    main([*small, "--json", str(path)])
    kept = json.loads(path.read_text())
    rounds = kept["tables"][0]["rounds"]
    accuracy = {name: figures[0]["accuracy"] for name, figures in rounds.items()}
    assert accuracy["plain"] > 0.9
    assert accuracy["one"] > accuracy["plain"] - 0.03
    assert accuracy["two"] > accuracy["plain"] - 0.06
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f"one: {kept['verdicts']['one']}" and said[-1].startswith("two: ")


def test_one_point_below_is_the_limit():
    def of(*accuracies):
        return [{"accuracy": accuracy} for accuracy in accuracies]

    found = verdicts(
        with_points({"plain": of(0.9, 0.8), "one": of(0.892, 0.79), "two": of(0.889, 0.789)})
    )
    assert found == {
        "one": "-0.90 points: within 1 point of plain PyTorch",
        "two": "-1.10 points: NOT within 1 point of plain PyTorch",
    }
