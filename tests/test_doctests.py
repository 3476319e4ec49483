"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import protocl


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
