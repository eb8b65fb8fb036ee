"""What the folders promise: which may import which, no circles, and a light import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flwr_byzasync"
ROOT = "flwr_byzasync"
VOCABULARY = {"errors", "estimators", "optimizers", "weights"}
HELPERS = {"_checks", "_clock", "_moved_arguments", "_printable", "_registry"}
ALLOWED: dict[str, set[str]] = {
    "aggregators": set(),
    "attacks": {"aggregators"},
    "audit": {"aggregators"},
    "testing": {"aggregators", "audit"},
    "core": {"aggregators"},
    "checkpoints": {"core", "aggregators"},
    "wire": {"core"},
    "server": {"aggregators", "core", "checkpoints", "wire"},
    "simulation": {"attacks", "wire"},
    "adversary": {"aggregators", "attacks", "core", "wire"},
}
"""Folder -> other folders that it may import, beside the public vocabulary and small helpers."""


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    paths = {
        path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")
    }
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    assert len(known) > 100
    return {name: set(imports_of(name, path, known)) - {name} for name, path in known.items()}


def folder_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_a_folder_imports_only_the_folders_below_it(graph: dict[str, set[str]]) -> None:
    found = {
        (name, target)
        for name, targets in graph.items()
        if folder_of(name) in ALLOWED
        for target in targets
        if folder_of(target)
        not in ALLOWED[folder_of(name)] | VOCABULARY | HELPERS | {folder_of(name)}
    }
    assert found == set()


def test_no_module_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_strategy_loads_neither_the_simulator_nor_an_attack_nor_the_testing_kit() -> None:
    code = (
        "import sys, flwr_byzasync.strategy\n"
        "heavy = ('simulation', 'attacks', 'adversary', 'testing', 'audit', 'cli')\n"
        "print([m for m in sys.modules if m.startswith('flwr_byzasync.')"
        " and m.split('.')[1] in heavy])\n"
        "import flwr_byzasync\n"
        "print(flwr_byzasync.VirtualGrid.__name__, 'flwr_byzasync.simulation' in sys.modules)\n"
    )
    run = [sys.executable, "-c", code]
    told = subprocess.run(run, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert told.stdout.split("\n")[:2] == ["[]", "VirtualGrid True"]


def test_a_name_that_the_package_lacks_is_python_s_own_error() -> None:
    import flwr_byzasync

    with pytest.raises(AttributeError, match="VirtualGird"):
        flwr_byzasync.VirtualGird  # noqa: B018
    assert all(hasattr(flwr_byzasync, name) for name in flwr_byzasync.__all__)


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_no_module_is_long() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count("\n")
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_no_function_is_long() -> None:
    long = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length > 40:
                    long[f"{path.relative_to(PACKAGE)}:{node.name}"] = length
    assert long == {}
