"""The trackers of a run together: one that fails is left out, and the run goes on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocl.config.presets import flatten
from protocl.config.schema import RunConfig
from protocl.errors import ConfigError
from protocl.registry import TRACKERS
from protocl.trackers.base import Place, Tracker

logger = logging.getLogger(__name__)


class Trackers:
    """Passes numbers on, with the names of TensorBoard's writer.

    Args:
        trackers: by name.
        folder: of the run, for messages.
    """

    def __init__(self, trackers: Mapping[str, Tracker], folder: Path) -> None:
        self.trackers = dict(trackers)
        self._folder = folder

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        """Note a value; see :meth:`Tracker.log`."""
        self._each(lambda tracker: tracker.log(tag, float(value), int(global_step)))

    def go_on(self, step: int) -> None:
        """See :meth:`Tracker.go_on`."""
        self._each(lambda tracker: tracker.go_on(step))

    def flush(self) -> None:
        """See :meth:`Tracker.flush`."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """See :meth:`Tracker.close`; a run that fails closes while its error is on the way."""
        failed = sys.exc_info()[0] is not None
        self._each(lambda tracker: tracker.close(failed=failed))
        self.trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))
        self.trackers.clear()

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # a run of hours must not end because a server is away
                del self.trackers[name]
                _say_lost(name, error, self._folder)


def open_trackers(config: RunConfig, folder: Path, step: int | None = None) -> Trackers:
    """The trackers that ``config.tracker`` names.

    Args:
        config: of the run.
        folder: of the run.
        step: from which on it continues, 0 for a run that begins; None if that is told later.

    Raises:
        ConfigError: the package of a tracker is not installed.
    """
    place = Place(folder, config.name, flatten(asdict(config)), Path(config.output).expanduser())
    made: dict[str, Tracker] = {}
    for name in dict.fromkeys(config.tracker):
        kind = _imported(name)
        try:
            made[name] = kind(place)
        except Exception as error:  # as in Trackers
            _say_lost(name, error, folder)
    opened = Trackers(made, folder)
    if step is not None:
        opened.go_on(step)
    return opened


def _imported(name: str) -> Callable[[Place], Tracker]:
    try:
        kind: Callable[[Place], Tracker] = TRACKERS.get(name)
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        package = error.__cause__.name or name
        raise ConfigError(
            f"tracker={name}: {package} is not installed: pip install 'protocl[{name}]', or choose "
            "another tracker"
        ) from error
    return kind


def _say_lost(name: str, error: Exception, folder: Path) -> None:
    logger.warning(
        "tracker '%s' failed and gets no more of this run (%s: %s); the run goes on, and all of "
        "its numbers are in %s",
        name, type(error).__name__, error, folder / "result.json",
    )  # fmt: skip
