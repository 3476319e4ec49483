"""Imports that look for no garbage, where nothing else can have left any."""

from __future__ import annotations

import gc
import subprocess
import sys

from protocl.lazy import first_imports

FIRST = """
import gc
from protocl.lazy import first_imports

try:
    with first_imports():
        assert not gc.isenabled()
        import protocl.no_such_module
except ImportError:
    pass
assert gc.isenabled() and gc.get_freeze_count() == 0
gc.disable()  # who collects nothing goes on so
with first_imports():
    pass
assert not gc.isenabled() and gc.get_freeze_count() == 0
gc.enable()
with first_imports():
    import torch
assert gc.isenabled() and gc.get_freeze_count() > 0
"""


def test_the_first_imports_are_left_alone_from_then_on() -> None:
    subprocess.run([sys.executable, "-c", FIRST], check=True, timeout=120)


def test_where_torch_is_there_nothing_changes() -> None:
    before = gc.get_freeze_count()
    with first_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
