"""The deadlines: documented, and set in `dask.config`."""

from pathlib import Path

import dask

from dbdask.rpc.deadlines import DEFAULTS, deadline
from dbdask.rpc.transport import WAYS, permitted


def test_every_deadline_is_documented_and_can_be_set():
    page = (Path(__file__).parents[2] / "docs" / "failure.md").read_text()
    for name, default in DEFAULTS.items():
        number = default.removesuffix("s")
        assert f"| `{name}` | {number} s" in page, name
        assert dask.config.get(f"dbdask.{name}") == default
        with dask.config.set({f"dbdask.{name}": "1500ms"}):
            assert deadline(name) == 1.5
    assert deadline("answer", nbytes=20_000_000) == deadline("answer") + 1


def test_deadlines_outlive_a_setting_that_was_made_before_them(monkeypatch):
    """Where `dask.config.set` adds the first name under `dbdask.`, its end removes all of them."""
    monkeypatch.delitem(dask.config.config, "dbdask")
    with dask.config.set({"dbdask.ping": "3s"}):
        assert deadline("ping") == 3
    assert deadline("ping") == 10 and permitted() == WAYS
