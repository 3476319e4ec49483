"""The house: which room may know which, how much is in each, and where a name is found."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from protocl.registry import STRATEGIES
from tests.walk import one_round, walk

ROOT = Path(__file__).parents[1]
ROOTS = ("protocl", "strategies", "federation")
MOST_MODULES, MOST_LINES, MOST_IGNORES = 14, 350, 20

RECIPES = {
    "simplecil": "nearest_mean",
    "slda": "linear_discriminant",
    "fecam": "mahalanobis",
    "ranpac": "ridge",
    **dict.fromkeys(("fed3r", "afl", "acil", "air", "flycl", "loranpac"), "ridge"),
    "aper": "nearest_mean",
}
"""Strategies whose equation is that of a head, in ``protocl/heads``."""


HELD_BY = {
    "protocl": ["test_packaging.py", "checks/test_checks.py"],
    "protocl/backbones": ["backbones/test_backbones.py"],
    "protocl/backbones/adaptation": ["backbones/test_adaptation.py"],
    "protocl/backbones/layers": ["backbones/layers/test_choice.py"],
    "protocl/bench": ["bench/test_bench.py", "bench/test_script.py"],
    "protocl/checks": ["checks/test_checks.py"],
    "protocl/cli": ["cli/test_main.py"],
    "protocl/cli/model": ["cli/test_model_commands.py"],
    "protocl/config": ["config/test_compose.py", "config/test_unused.py"],
    "protocl/data": ["data/test_data.py", "data/test_archives.py", "data/test_pictures.py"],
    "protocl/data/readers": [
        "data/readers/test_doors.py",
        "data/readers/test_table.py",
        "data/readers/test_published.py",
    ],
    "protocl/data/shards": ["data/shards/test_shards.py"],
    "protocl/data/augmentation": [
        "data/test_image_augmentation.py",
        "strategies/training/test_views.py",
    ],
    "protocl/discovering": ["discovering/test_run.py"],
    "protocl/distributed": [
        "memory/processes/test_reduction.py",
        "runner/together/test_together.py",
    ],
    "protocl/heads": ["heads/test_golden.py", "heads/test_peers.py", "heads/test_topk.py"],
    "protocl/heads/bayesian": ["heads/bayesian/test_bayesian.py"],
    "protocl/heads/covariance": ["heads/covariance/test_forms.py"],
    "protocl/heads/gaussian": ["heads/test_calibrated.py"],
    "protocl/heads/joint": ["heads/joint/test_joint_heads.py"],
    "protocl/heads/regression": ["heads/regression/test_equations.py"],
    "protocl/heads/probabilities": ["heads/test_probabilities.py"],
    "protocl/io": ["runner/test_experiment.py", "io/test_checkpoint.py"],
    "protocl/memory": ["memory/test_memory.py", "memory/test_memory_doors.py"],
    "protocl/memory/estimates": ["memory/estimates/test_group_moments.py"],
    "protocl/memory/maps": ["memory/maps/test_maps.py"],
    "protocl/memory/limits": ["memory/test_capacity.py", "memory/test_memory_doors.py"],
    "protocl/memory/pending": ["memory/pending/test_updates.py"],
    "protocl/model": ["model/test_classifier.py"],
    "protocl/model/changes": ["model/changes/test_ledger.py", "serve/test_safety.py"],
    "protocl/open_world/discovery": ["open_world/discovery/test_k_means.py"],
    "protocl/open_world/few_labels": ["open_world/few_labels/test_transductive.py"],
    "protocl/metrics": ["metrics/test_class_incremental.py", "metrics/test_confusion.py"],
    "protocl/open_world": ["open_world/test_evidence.py"],
    "protocl/open_world/federated": ["open_world/federated/test_aliases.py"],
    "protocl/open_world/scores": ["open_world/scores/test_scores.py"],
    "protocl/pretraining": ["pretraining/test_pretraining.py"],
    "protocl/report": ["report/test_comparison.py", "report/test_groups.py"],
    "protocl/serve": ["serve/test_routes.py", "serve/test_safety.py"],
    "protocl/streaming": ["streaming/test_run.py"],
    "protocl/trackers": ["trackers/test_trackers.py"],
    "protocl/runner": ["runner/test_experiment.py", "io/test_checkpoint.py"],
    "protocl/runner/launchers": ["runner/launchers/test_launchers.py", "runner/test_sweep.py"],
    "protocl/runner/together": ["runner/together/test_together.py"],
    "strategies": ["strategies/frozen/test_base.py", "strategies/test_baselines.py"],
    "strategies/analytic": ["strategies/analytic/test_recipes.py"],
    "strategies/avalanche": [
        "strategies/avalanche/test_in_memory.py",
        "strategies/training/test_trained_configs.py",
    ],
    "strategies/bench": ["bench/test_bench.py", "bench/test_script.py"],
    "strategies/bench/scripts": ["bench/test_script.py"],
    "strategies/drift": ["strategies/drift/test_estimators.py"],
    "strategies/exemplar_free": [
        "strategies/exemplar_free/test_kept_classes.py",
        "strategies/test_pass.py",
    ],
    "strategies/exemplars": [
        "strategies/exemplars/test_sample_memory.py",
        "strategies/test_icarl.py",
    ],
    "strategies/frozen": ["strategies/frozen/test_base.py"],
    "strategies/open_world": ["strategies/open_world/test_palm.py"],
    "strategies/plugin": ["strategies/plugin/test_prototype_plugin.py"],
    "strategies/ready_made": ["strategies/frozen/test_base.py"],
    "strategies/training": ["strategies/training/test_losses.py", "strategies/test_prd.py"],
    "federation/bench": ["bench/test_bench.py", "federation/robust/test_rules.py"],
    "federation/books": ["federation/books/test_books.py"],
    "federation/cli": ["federation/runner/test_run.py"],
    "federation/client": ["federation/server/test_strategy.py", "federation/server/test_state.py"],
    "federation/config": ["federation/runner/test_run.py"],
    "federation/deploy": ["federation/deploy/test_deployment.py"],
    "federation/deploy/template": ["federation/deploy/test_deployment.py"],
    "federation/edges": ["federation/edges/test_simulated.py"],
    "federation/exactly_once": ["federation/exactly_once/test_machine.py"],
    "federation/methods": [
        "federation/runner/test_run.py",
        "federation/methods/test_protected_runs.py",
    ],
    "federation/operations": ["federation/operations/test_operations.py"],
    "federation/privacy": ["federation/privacy/test_mechanism.py"],
    "federation/reconnaissance": ["federation/reconnaissance/test_reconnaissance.py"],
    "federation/reconnaissance/methods": ["federation/reconnaissance/test_reconnaissance.py"],
    "federation/robust": ["federation/robust/test_rules.py"],
    "federation/runner": ["federation/runner/test_run.py"],
    "federation/secure": ["federation/secure/test_secure_aggregation.py"],
    "federation/secure/protocol": ["federation/secure/test_secure_aggregation.py"],
    "federation/server": ["federation/server/test_strategy.py", "federation/server/test_state.py"],
    "federation/wire": [
        "federation/wire/test_hostile_replies.py",
        "federation/server/test_strategy.py",
    ],
}
"""Where modules without a test of their own stem are tested: through what uses them."""


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


@cache
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
    rooms = (home / room / f"{name}.py" for room in ("analytic", "open_world"))
    if not own.is_file() and not any(path.is_file() for path in rooms):
        assert (
            name.startswith("avalanche_")
            or STRATEGIES.get(name).__module__.endswith("baselines")
            or name in ("icarl_nme", "frozen")
        )
    if name in RECIPES:
        assert (ROOT / "protocl" / "heads" / f"{RECIPES[name]}.py").is_file()


def test_the_readme_is_short_and_its_links_lead_somewhere():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 100] == []
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]
    assert len(links) > 10
    assert [str(page) for page, target in links if not (page.parent / target).exists()] == []


def test_every_module_has_a_test_or_it_is_said_where():
    tests = ROOT / "tests"
    for path in modules().values():
        home = path.relative_to(ROOT / "protocl" if path.is_relative_to(ROOT / "protocl") else ROOT)
        own = tests / home.parent / f"test_{path.stem.rstrip('_')}.py"
        if path.stem.startswith("__") or own.is_file():
            continue
        held = HELD_BY.get(str(path.parent.relative_to(ROOT)), [])
        assert held, f"{path}: no {own.relative_to(ROOT)}, and its folder is not in HELD_BY"
        assert [name for name in held if not (tests / name).is_file()] == []


def test_one_round_of_two_clients_is_a_short_way():
    files, hops = walk(one_round)
    assert len(files) <= 36
    assert sum(hops.values()) <= 410
