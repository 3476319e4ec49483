"""Where a result came from: versions, git state and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_RECORDED = (
    "protocl",
    "torch",
    "torchvision",
    "avalanche-lib",
    "flwr",
    "numpy",
    "scikit-learn",
    "timm",
)


def versions() -> dict[str, str]:
    """Versions of python and of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        installed = installed_version(name)
        if installed is not None:
            found[name] = installed
    return found


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the working folder and whether tracked files differ from it; None outside git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def machine(device: str, threads: int) -> dict[str, Any]:
    """The computer that a run used.

    Args:
        device: the resolved device, such as ``"cpu"``.
        threads: threads that torch computes with.
    """
    return {
        "cores": available_cores(),
        "threads": threads,
        "device": device,
        "platform": platform.platform(),
    }


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
