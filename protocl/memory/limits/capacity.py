"""Refuse what would not fit in memory before any of it is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch

from protocl.errors import CapacityError

_CGROUP = Path("/sys/fs/cgroup")
SMALL = 1 << 28
"""Bytes that are allocated without asking the system first."""


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``.

    On a CPU what the system can give without swapping, or less where the process runs in a
    container (control group, version 2) with a limit.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # What torch's own allocator holds and does not use is not lost.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    limit = _cgroup_room(_CGROUP)
    return available if limit is None else min(available, limit)


def require_bytes(
    needed: int,
    device: torch.device,
    what: str,
    alternatives: Callable[[], Mapping[str, int]],
) -> None:
    """Refuse to allocate ``needed`` bytes where they do not fit.

    Args:
        needed: bytes.
        device: where.
        what: what they are for, the subject of the message.
        alternatives: gives what else could be asked for, and its bytes; those that fit are named.

    Raises:
        CapacityError: they do not fit.
    """
    if needed < SMALL:
        return
    available = available_bytes(device)
    if needed > available:
        fitting = [f"{k} takes {readable(n)}" for k, n in alternatives().items() if n <= available]
        raise CapacityError(
            f"{what} would take {readable(needed)} on {device}, where {readable(available)} are "
            f"available; {', '.join(fitting) or 'use fewer classes or features'}"
        )


def readable(size: int) -> str:
    """Bytes with a unit: ``"3.2 GB"``."""
    value, units = float(size), ("bytes", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}"


def _cgroup_room(group: Path) -> int | None:
    """Bytes below the limit of a control group; file cache that can be dropped does not count."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = (group / "memory.stat").read_text()
    except FileNotFoundError:  # no such limits on this system
        return None
    if limit == "max":
        return None
    kept = dict(line.split() for line in statistics.splitlines())
    return max(0, int(limit) - used + int(kept.get("inactive_file", 0)))
