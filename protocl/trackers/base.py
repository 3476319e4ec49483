"""What a tracker is: numbers by name and step, of a run that may be taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """The run that is tracked.

    Attributes:
        folder: of the run; it exists.
        name: of the run, which runs that are meant to be compared have in common.
        settings: its resolved configuration by dotted key.
        output: the folder above those of all runs.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    output: Path


class Tracker:
    """Receives the numbers of one run.

    A package registers one under the entry-point group ``protocl.trackers``; ``tracker=NAME`` has
    it called with a :class:`Place`. Whatever it raises is reported, and the run goes on without it.
    """

    def log(self, name: str, value: float, step: int) -> None:
        """Note a value.

        Args:
            name: such as ``stream_accuracy``, with slashes between its parts.
            value: finite or not.
            step: what is counted depends on the name: experiences, rounds, training iterations.
        """
        raise NotImplementedError(f"{type(self).__name__}.log is not defined")

    def go_on(self, step: int) -> None:
        """Forget what an earlier process noted of ``step`` and later; of a new run, all."""

    def flush(self) -> None:
        """Bring to its place what was noted so far."""

    def close(self, *, failed: bool) -> None:
        """Nothing more will be noted.

        Args:
            failed: whether the run ends by an error.
        """
