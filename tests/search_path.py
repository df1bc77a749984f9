"""Where other processes find what tests import: the project, and the folders of the tests."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
FOLDERS = sorted(path for path in TESTS.iterdir() if path.is_dir() and any(path.glob("test_*.py")))
SEARCH_PATH = os.pathsep.join(map(str, [TESTS.parent, TESTS, *FOLDERS]))
