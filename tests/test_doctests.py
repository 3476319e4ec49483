"""The examples in the docstrings and on the pages run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import protocl
from protocl import federation, heads, strategies
from protocl.federation.config.schema import METHODS
from protocl.registry import HEADS, MAPS, SCORES, STRATEGIES, Registry

PAGES = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages_with_examples() -> list[str]:
    return [page.name for page in sorted(PAGES.glob("*.md")) if "\n>>> " in page.read_text("utf-8")]


def modules_with_examples() -> list[str]:
    names = [
        info.name
        for info in pkgutil.walk_packages(protocl.__path__, "protocl.")
        if not info.name.endswith("__main__")
    ]
    finder = doctest.DocTestFinder()
    return [
        name
        for name in names
        if any(test.examples for test in finder.find(importlib.import_module(name)))
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    results = doctest.testmod(
        importlib.import_module(name),
        extraglobs={"torch": torch, "PrototypeMemory": protocl.PrototypeMemory},
    )
    assert results.attempted > 0
    assert results.failed == 0


REGISTRIES = [HEADS, MAPS, SCORES, STRATEGIES, METHODS]


@pytest.mark.parametrize("registry", REGISTRIES, ids=[one.group for one in REGISTRIES])
def test_every_registered_name_has_an_example(registry: Registry) -> None:
    for name, entry in registry.entries().items():
        if entry.value.startswith("protocl."):
            docs = [part.__doc__ or "" for part in described(registry.load(entry))]
            assert any(">>>" in doc for doc in docs), f"{registry.kind} '{name}' has no example"


def described(part: Any) -> list[Any]:
    """A registered part, and the public strategies whose settings it is."""
    public = [getattr(strategies, name) for name in strategies.__all__]
    return [
        part,
        *(
            made
            for made in public
            if getattr(made, "settings", None) is part or made.__module__ == part.__module__
        ),
    ]


@pytest.mark.parametrize("room", [strategies, federation, heads], ids=lambda room: room.__name__)
def test_every_public_name_has_an_example(room: ModuleType) -> None:
    names = [name for name in room.__all__ if name not in WITHOUT]
    assert len(names) >= 5
    assert [name for name in names if ">>>" not in (getattr(room, name).__doc__ or "")] == []


WITHOUT = {"CalibrationTable", "ClassPriors", "Head", "Prior", "RandomPrior", "SharedPrior"}
"""What heads are made of, which their own examples and ``docs/own_head.md`` show at work."""


@pytest.mark.parametrize("page", pages_with_examples())
def test_examples_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example)
    assert runner.summarize().attempted == len(example.examples) > 2
    assert runner.failures == 0
