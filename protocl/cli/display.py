"""What a sweep shows on standard error while it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from protocl.runner.progress import Progress as RunProgress
from protocl.runner.sweep import Outcome

_STEPS = 1000  # resolution of a run's bar


class SweepDisplay:
    """A bar for each run under way and one for all; a line for each run that ended.

    Args:
        labels: what each run is called.
        console: where it is drawn; lines are written there also when it is not a terminal.
    """

    def __init__(self, labels: Sequence[str], console: Console) -> None:
        self._labels = labels
        self._lock = Lock()
        self._tasks: dict[int, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._all = self._progress.add_task(
            "all runs", total=len(labels), status=f"0/{len(labels)}", visible=len(labels) > 1
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def started(self, index: int, folder: Path) -> None:
        """Show a bar for the run."""
        with self._lock:
            self._tasks[index] = self._progress.add_task(
                self._labels[index], total=_STEPS, status="starting"
            )

    def progressed(self, index: int, progress: RunProgress) -> None:
        """Move the run's bar; print what it has to say."""
        with self._lock:
            if progress.phase == "features":
                self._progress.stop()  # the feature pass draws a bar of its own
            elif not self._progress.live.is_started:
                self._progress.start()
            completed, status = _STEPS * progress.share, str(progress)
            self._progress.update(self._tasks[index], completed=completed, status=status)
            if progress.line is not None:
                label = f"{self._labels[index]}, " if len(self._labels) > 1 else ""
                text = Text(f"  {label}{progress.line}")
                self._progress.console.print(text, soft_wrap=True)

    def ended(self, index: int, outcome: Outcome) -> None:
        """Replace the run's bar by a line."""
        with self._lock:
            task = self._tasks.pop(index, None)
            if task is not None:
                self._progress.remove_task(task)
            done = int(self._progress.tasks[0].completed) + 1
            self._progress.update(self._all, completed=done, status=f"{done}/{len(self._labels)}")
            self._progress.console.print(_ending(self._labels[index], outcome), soft_wrap=True)


def _ending(label: str, outcome: Outcome) -> Text:
    if outcome.failure is not None:
        return Text(f"failed  {label}: {outcome.failure}", "red")
    if outcome.skipped:
        return Text(f"found   {label}: finished before, in {outcome.folder}", "cyan")
    return Text(f"done    {label}: {outcome.folder}", "green")
