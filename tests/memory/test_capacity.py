"""What is known about the memory that is left."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from protocl.errors import CapacityError
from protocl.memory.limits.capacity import _cgroup_room, available_bytes, readable, require_bytes


def test_no_more_is_available_than_the_machine_has() -> None:
    assert 0 < available_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


def test_the_limit_of_a_container_counts_and_its_file_cache_does_not(tmp_path: Path) -> None:
    assert _cgroup_room(tmp_path) is None
    for name, text in {
        "max": "1000",
        "current": "700",
        "stat": "anon 400\ninactive_file 250\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert _cgroup_room(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_room(tmp_path) is None


def test_the_error_names_what_fits() -> None:
    cpu = torch.device("cpu")
    require_bytes(10**6, cpu, "this", dict)
    with pytest.raises(
        CapacityError, match=r"this would take 1e\+06 TB on cpu.*; less takes 5 MB$"
    ):
        require_bytes(10**18, cpu, "this", lambda: {"less": 5 * 10**6, "half": 5 * 10**17})
    with pytest.raises(CapacityError, match="use fewer classes or features"):
        require_bytes(10**18, cpu, "this", dict)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (7 * 10**13, "70 TB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert readable(size) == text
