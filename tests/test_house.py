"""The house: floors, laziness, silence."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dbdask

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dbdask"
ROOMS = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
FLOORS = {
    "errors": 0,
    "users_code": 0,
    "schedule": 1,
    "optim": 1,
    "storage": 1,
    "models": 2,
    "metrics": 3,
    "data": 4,
    "server": 5,
    "verbs": 7,
}
RESULT_FLOOR = 6
KNOWS_DASK = {"dbdask.data.supply"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module):
    parts = module.split(".")
    assert parts[0] == "dbdask", module
    assert len(parts) > 1, "import the room, not the front door"
    return FLOORS.get(parts[1], RESULT_FLOOR)


def imported_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if [alias.name for alias in node.names] != ["__version__"]:
                yield node.module


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_imports_point_down_only(path):
    own = floor_of(name_of(path))
    for module in imported_names(ast.parse(path.read_text())):
        if module.split(".")[0] == "dbdask":
            assert floor_of(module) <= own, f"{name_of(path)} imports {module}, a floor above"


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_the_library_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [
        call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


def loaded_by(statements):
    """Names of the dask packages that a fresh process has loaded after the statements."""
    program = f"""
{statements}
import sys
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {{"dask", "distributed"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("floor", ["schedule", "optim", "storage", "models", "metrics", "data"])
def test_what_computes_loads_no_dask(floor):
    rooms = {name_of(path) for path in (PACKAGE / floor).glob("*.py")} - KNOWS_DASK
    assert rooms
    assert loaded_by("\n".join(f"import {room}" for room in sorted(rooms))) == []


def test_the_front_door_loads_names_when_they_are_used():
    assert loaded_by("import dbdask") == []
    assert loaded_by("import dbdask; dbdask.Network, dbdask.adagrad") == []


@pytest.mark.parametrize("name", dbdask.__all__)
def test_public_names_are_there_and_documented(name):
    value = getattr(dbdask, name)
    assert name in dir(dbdask)
    assert isinstance(value, str) or value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sandpaper'"):
        dbdask.sandpaper  # noqa: B018


def test_the_version_is_the_one_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dbdask.__version__ == project["version"]
