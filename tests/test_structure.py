"""The structure: imports, laziness, silence."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dbdask

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dbdask"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
LEVELS = {
    "errors": 0,
    "arrays": 0,
    "json_types": 0,
    "users_code": 0,
    "schedule": 1,
    "optim": 1,
    "daemon_threads": 1,
    "storage": 1,
    "models": 2,
    "metrics": 3,
    "data": 4,
    "rpc": 4,
    "worker": 5,
    "run": 7,
    "algorithms": 8,
    "sklearn": 9,
}
TOP_LEVEL = 6  # modules such as `result`, which read and score without a run
KNOWS_DASK = {"dbdask.data.block_provider", "dbdask.data.cluster_sweeps"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level_of(module):
    parts = module.split(".")
    assert parts[0] == "dbdask", module
    assert len(parts) > 1, "import the module, not the package"
    return LEVELS.get(parts[1], TOP_LEVEL)


def imported_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if [alias.name for alias in node.names] != ["__version__"]:
                yield node.module


def strongly_connected(graph):
    """Sets of nodes that reach each other: Kosaraju's two searches."""
    order, seen = [], set()

    def visit(node, edges, found):
        seen.add(node)
        for other in edges.get(node, ()):
            if other in graph and other not in seen:
                visit(other, edges, found)
        found.append(node)

    for node in graph:
        if node not in seen:
            visit(node, graph, order)
    reverse = {node: {o for o, edges in graph.items() if node in edges} for node in graph}
    seen.clear()
    rings = []
    for node in reversed(order):
        if node not in seen:
            rings.append([])
            visit(node, reverse, rings[-1])
    return [sorted(ring) for ring in rings]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path):
    own = level_of(name_of(path))
    for module in imported_names(ast.parse(path.read_text())):
        if module.split(".")[0] == "dbdask":
            assert level_of(module) <= own, f"{name_of(path)} imports {module}, a level above"


def test_no_imports_form_a_circle():
    """Imports inside functions and those for types only count as well."""
    graph = {
        name_of(path): {m for m in imported_names(ast.parse(path.read_text())) if "dbdask" in m}
        for path in MODULES
    }
    circles = [ring for ring in strongly_connected(graph) if len(ring) > 1]
    assert not circles


@pytest.mark.parametrize("path", MODULES, ids=name_of)
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


@pytest.mark.parametrize("package", ["schedule", "optim", "storage", "models", "metrics", "data"])
def test_what_computes_loads_no_dask(package):
    modules = {name_of(path) for path in (PACKAGE / package).glob("*.py")} - KNOWS_DASK
    assert modules
    assert loaded_by("\n".join(f"import {module}" for module in sorted(modules))) == []


def test_the_package_loads_names_when_they_are_used():
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
