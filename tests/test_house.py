"""The house: which room may know which, how much is in each, and where a name is found."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from protocl.registry import STRATEGIES

ROOT = Path(__file__).parents[1]
ROOTS = ("protocl", "strategies", "federation")
MOST_MODULES, MOST_LINES, MOST_IGNORES = 14, 350, 20

RECIPES = {
    "simplecil": "nearest_mean",
    "slda": "linear_discriminant",
    "fecam": "mahalanobis",
    "ranpac": "ridge",
    "aper": "nearest_mean",
}
"""Strategies whose equation is that of a head, in ``protocl/heads``."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its name in Python; packages by that of their folder."""
    found = {}
    for root in ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if root == "protocl" else ("protocl", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Modules of the product that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules():
                    yield inner
                elif node.module in modules():
                    yield node.module


def room(module: str) -> str:
    """The part of the house that a module belongs to: a folder of the core, or one of the others.

    A file directly in ``protocl/`` is a room of its own.
    """
    return ".".join(module.split(".")[: 3 if module.startswith(OUTER) else 2])


OUTER = ("protocl.strategies", "protocl.federation")


def test_no_circle_between_rooms():
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        if module in ("protocl", *OUTER):
            continue  # lazily imported public names
        graph.setdefault(room(module), set()).update(
            room(other) for other in imported(path) if room(other) != room(module)
        )
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_dependencies_point_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in imported(path)
        if other.startswith(OUTER) and not module.startswith(OUTER)
    ]
    assert not wrong


def test_a_folder_can_be_taken_in_at_a_glance():
    count = Counter(path.parent for path in modules().values() if path.stem != "__init__")
    assert len(count) > 20
    assert {str(folder): n for folder, n in count.items() if n > MOST_MODULES} == {}


def test_a_module_can_be_read_in_one_sitting():
    long = {str(path): len(path.read_text().splitlines()) for path in modules().values()}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_few_exceptions_from_the_type_checker():
    lines = [line for path in modules().values() for line in path.read_text().splitlines()]
    assert sum("type: ignore" in line for line in lines) <= MOST_IGNORES


def test_private_names_of_the_memory_stay_in_its_room():
    home = ROOT / "protocl" / "memory"
    private = {name for path in home.rglob("*.py") for name in private_names(path)}
    outside = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"
        for path in modules().values()
        if home not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in private - private_names(path)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert private
    assert not outside


def private_names(path: Path) -> set[str]:
    """Names with one leading underscore that a file defines or assigns to an attribute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_strategy_is_found_by_its_name(name: str) -> None:
    home = ROOT / "strategies"
    own = home / f"{name}_.py" if name == "pass" else home / f"{name}.py"
    if not own.is_file():
        assert (
            name.startswith("avalanche_")
            or STRATEGIES.get(name).__module__.endswith("baselines")
            or name in ("icarl_nme", "frozen")
        )
    if name in RECIPES:
        assert (ROOT / "protocl" / "heads" / f"{RECIPES[name]}.py").is_file()
