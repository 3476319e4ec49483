"""How runs of a sweep end, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocl.config.schema import RunConfig
from protocl.runner.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        config: what was run.
        folder: where it wrote; gone if it failed before it had a result or a log.
        failure: what went wrong, or None.
        exit_code: 0, or that of the failure.
        skipped: whether a finished run of this configuration was found and left as it is.
    """

    config: RunConfig
    folder: Path
    failure: str | None = None
    exit_code: int = 0
    skipped: bool = False


class Observer(Protocol):
    """Whoever is told what happens in a sweep; with several jobs, from several threads."""

    def started(self, index: int, folder: Path) -> None:
        """Run ``index`` begins."""

    def progressed(self, index: int, progress: Progress) -> None:
        """Run ``index`` has come to ``progress``."""

    def ended(self, index: int, outcome: Outcome) -> None:
        """Run ``index`` is over."""
