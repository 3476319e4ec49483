"""What all tests share: a heap that is searched for garbage once, and runs without pictures."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from protocl import report

DRAW = report.plot_run


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave modules and tests, which live to the end, out of every search for garbage.

    Runs search before they begin, which takes a second among so many objects.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw runs where pictures are tested (``plots``); it takes half the time of small ones."""
    drawn = item.get_closest_marker("plots") is not None
    report.plot_run = DRAW if drawn else _draw_nothing


def _draw_nothing(result: dict[str, Any], out_dir: Path) -> list[Path]:
    return []
