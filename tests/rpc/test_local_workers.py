"""What a worker does beside its event loop."""

import asyncio
import importlib

from dbdask.daemon_threads import NAME
from dbdask.rpc.local_workers import import_here


def test_a_module_is_imported_on_a_daemon_thread(tmp_path, monkeypatch):
    """An import that hangs takes no thread of the loop's pool, and keeps no process alive."""
    (tmp_path / "imported_beside.py").write_text(
        "import threading\nTHREAD = threading.current_thread()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asyncio.run(import_here(["imported_beside"]))
    thread = importlib.import_module("imported_beside").THREAD
    assert thread.daemon and thread.name == NAME
