"""What launchers share: an order that any process can carry out, and a second try where one dies.

A run goes on in its folder from its last checkpoint, whoever takes it up. The folder, the cache and
the data therefore lie where all machines see them under the same path.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from protocl.config.compose import to_yaml
from protocl.config.schema import RunConfig
from protocl.runner.kind import Kind
from protocl.runner.launchers.outcome import Outcome

TRIES = 3
"""How often a run is begun or continued whose process dies."""

Order = dict[str, str]


class Worker(Protocol):
    """Carries out one run after the other, somewhere."""

    def run(self, index: int, config: RunConfig, folder: Path) -> Outcome:
        """Carry out run ``index`` and wait for its end."""

    def close(self) -> None:
        """End what is under way; it can be resumed."""


def name_of(kind: Kind[Any]) -> str:
    """Where a process finds the kind of a run."""
    return f"{type(kind).__module__}:{type(kind).__qualname__}"


def carry_out(order: Order) -> tuple[str | None, int]:
    """Carry out a run, or the rest of it, in this process.

    Returns:
        What went wrong, or None, and the exit code.
    """
    os.chdir(order["cwd"])
    kind: Kind[Any] = resolve_name(order["kind"])()
    return kind.attempt(kind.from_yaml(order["config"]), Path(order["folder"]))


class LostError(Exception):
    """The process of a run ended without an answer."""


class RemoteWorker(ABC):
    """A :class:`Worker` of which each run is one order to another system.

    Args:
        kind: of the runs.
        tell: is told in a line that a run begins anew.
    """

    def __init__(self, kind: Kind[Any], tell: Callable[[int, str], None]) -> None:
        self._kind = name_of(kind)
        self._tell = tell

    def run(self, index: int, config: RunConfig, folder: Path) -> Outcome:
        """See :class:`Worker`; what dies is taken up again, and given up after some tries."""
        order = {
            "kind": self._kind, "config": to_yaml(config), "folder": str(folder.absolute()),
            "cwd": os.getcwd(),
        }  # fmt: skip
        lost = ""
        for left in reversed(range(TRIES)):
            try:
                return Outcome(config, folder, *self.order(order, config))
            except LostError as error:
                lost = str(error)
                if left:
                    self._tell(index, f"lost its process ({lost}) and goes on in another")
        failure = (
            f"its process died {TRIES} times ({lost}); the same command with resume=true "
            "continues it"
        )
        return Outcome(config, folder, failure=failure, exit_code=1)

    @abstractmethod
    def order(self, order: Order, config: RunConfig) -> tuple[str | None, int]:
        """Have :func:`carry_out` called elsewhere, and wait for what it returns.

        Raises:
            LostError: the process died.
        """

    @abstractmethod
    def close(self) -> None:
        """See :class:`Worker`."""
