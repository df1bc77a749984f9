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
LEVELS = {
    "arrays": 0,
    "errors": 0,
    "json_types": 0,
    "status": 0,
    "version": 0,
    "optim": 1,
    "schedule": 1,
    "users_code": 1,
    "daemon_threads": 2,
    "models": 2,
    "storage": 2,
    "metrics": 3,
    "rpc": 3,
    "data": 4,
    "plotting": 4,
    "progress": 4,
    "meanings": 5,
    "stored_parameters": 5,
    "worker": 5,
    "prediction": 6,
    "saving": 6,
    "result": 7,
    "run": 8,
    "algorithms": 9,
    "torch": 10,
    "sklearn": 10,
}
ROOT_LEVEL = 11  # `dbdask` itself, which names the whole public API
ADAPTERS = {"torch", "sklearn"}
KNOWS_DASK = {"dbdask.data.block_provider", "dbdask.data.cluster_sweeps"}


def modules_of(package):
    """The modules of a package by name, packages and the root among them."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules_of(PACKAGE)


def part_of(module):
    """The package or top-level module that a module belongs to; None for the root."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or None


def level_of(module):
    part = part_of(module)
    return ROOT_LEVEL if part is None else LEVELS[part]


def imported_modules(path, modules):
    """The modules, of those given, that a file imports: in functions and for types only as well.

    `from package import name` imports the module `package.name` if there is one.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules or node.module in modules:
                    yield full if full in modules else node.module


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


def circles(package):
    """The sets of modules that import each other in a circle."""
    modules = modules_of(package)
    graph = {name: set(imported_modules(path, modules)) for name, path in modules.items()}
    return [ring for ring in strongly_connected(graph) if len(ring) > 1]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_only(name):
    for module in imported_modules(MODULES[name], MODULES):
        if part_of(module) != part_of(name):
            assert level_of(module) < level_of(name), f"{name} imports {module}, not a level below"


@pytest.mark.parametrize("name", MODULES)
def test_an_adapter_is_imported_by_itself_only(name):
    used = {part_of(module) for module in imported_modules(MODULES[name], MODULES)}
    assert not (used & ADAPTERS) - {part_of(name)}


INSIDE = {
    "actor_execute",
    "actors",
    "batched_stream",
    "memory_manager",
    "plugin_add",
    "plugin_remove",
    "scheduler_comm",
    "_instances",
    "_send_to_scheduler",
}
"""Attributes of clients, workers and schedulers that their documentation does not promise."""


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) != "rpc"])
def test_rpc_alone_touches_the_inside_of_distributed(name):
    tree = ast.parse(MODULES[name].read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & INSIDE
    private = [module for module in names_imported(tree) if module.startswith("distributed._")]
    assert not private


def names_imported(tree):
    """Every module that a file imports, of this package or of another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_imports_form_a_circle():
    assert circles(PACKAGE) == []


@pytest.mark.parametrize(
    ("importing_b", "importing_a"),
    [
        ("from p.q.b import B", "from p.q.a import A"),
        ("from p.q import b", "import p.q.a"),
        ("if TYPE_CHECKING:\n    from p.q.b import B", "def f():\n    from p.q import a"),
    ],
)
def test_a_circle_is_found(tmp_path, importing_b, importing_a):
    folder = tmp_path / "p" / "q"
    folder.mkdir(parents=True)
    (tmp_path / "p" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text(importing_b)
    (folder / "b.py").write_text("")
    assert circles(tmp_path / "p") == []
    (folder / "b.py").write_text(importing_a)
    assert circles(tmp_path / "p") == [["p.q.a", "p.q.b"]]


def test_a_circle_through_the_root_is_found(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "__init__.py").write_text("if TYPE_CHECKING:\n    from p.a import A as A")
    (folder / "a.py").write_text("from p import __version__")
    assert circles(folder) == [["p", "p.a"]]


@pytest.mark.parametrize("name", MODULES)
def test_the_library_does_not_print(name):
    tree = ast.parse(MODULES[name].read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
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
    modules = {name for name in MODULES if part_of(name) == package} - KNOWS_DASK
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
