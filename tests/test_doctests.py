"""The examples in the docstrings and on the pages run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import protocl

PAGES = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


@pytest.mark.parametrize("page", ["data.md", "python.md"])
def test_examples_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example)
    assert runner.summarize().attempted == len(example.examples) > 10
    assert runner.failures == 0
