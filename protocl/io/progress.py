"""A progress bar that shows itself only when the work takes a while."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

DELAY_SECONDS = 2.0


class ProgressBar:
    """Counts steps; after two seconds a bar with the time left appears on standard error.

    Use it in a ``with`` block and call :meth:`advance`.

    Args:
        description: what is being done, shown before the bar.
        total: number of steps.
        enabled: False for no bar at all.
    """

    def __init__(self, description: str, total: int, *, enabled: bool = True) -> None:
        self.description = description
        self.total = total
        self.enabled = enabled
        self.completed = 0
        self._start = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    @property
    def visible(self) -> bool:
        """Whether the bar is on screen."""
        return self._bar is not None

    def advance(self, steps: int = 1) -> None:
        """Record that ``steps`` more are done."""
        self.completed += steps
        if not self.enabled:
            return
        if self._bar is None and time.monotonic() - self._start > DELAY_SECONDS:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self.description, total=self.total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.completed)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
