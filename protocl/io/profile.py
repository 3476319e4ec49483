"""Wall time and peak memory of the parts of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


class PhaseLog:
    """Notes for each phase how long it took and how much resident memory it reached.

    On Linux the peak is that of the phase itself; elsewhere it is the highest so far in the
    process, which is all that the system tells.

    Args:
        entries: phases of an earlier process whose run is continued.
    """

    def __init__(self, entries: list[dict[str, Any]] | None = None) -> None:
        self.entries = list(entries or [])

    @contextmanager
    def phase(self, name: str, experience: int | None = None) -> Iterator[None]:
        """Measure the block and add an entry for it when it ends well.

        Args:
            name: ``"data"``, ``"features"``, ``"train"`` or ``"eval"``.
            experience: index of the experience, from 0, where there is one.
        """
        _reset_peak()
        start = time.perf_counter()
        yield
        self.entries.append(
            {
                "phase": name,
                "experience": experience,
                "seconds": time.perf_counter() - start,
                "peak_mib": _peak_mib(),
            }
        )


def _reset_peak() -> None:
    if sys.platform == "linux":
        _RESET_PEAK.write_text("5")  # man 5 proc: 5 resets the peak resident set size


def _peak_mib() -> float:
    if sys.platform == "linux":
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
