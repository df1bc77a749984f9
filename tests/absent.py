"""Runs pytest as if a package were not installed: python tests/absent.py PACKAGE ARGUMENTS."""

import sys

import pytest


class Without:
    """A finder of modules that does not find a package; else it does as another finder does."""

    def __init__(self, finder, package):
        self.finder, self.package = finder, package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def hide(package):
    """Let no import in this process find a package."""
    assert package not in sys.modules, f"{package} is imported already"
    sys.meta_path[:] = [Without(finder, package) for finder in sys.meta_path]


if __name__ == "__main__":
    hide(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:]))
