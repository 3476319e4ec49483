"""Who sees which samples when, and who meets whom: a scenario that others can run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocl.errors import DataError
from protocl.io.atomic import atomic_write

FORMAT = "protocl-scenario-1"
SERVER = -1
"""The number of the server among the nodes; clients are 0, 1, 2, ..."""


@dataclass(frozen=True)
class Mission:
    """What one client learns in one step.

    Attributes:
        client: number of the client.
        rows: training samples, as rows of the data.
        unlabelled: further samples whose classes nobody tells the client.
    """

    client: int
    rows: tuple[int, ...]
    unlabelled: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """Missions at the same time, then meetings one after the other.

    Attributes:
        missions: at most one a client.
        meetings: pairs of nodes that exchange what the other lacks, in order; with
            :data:`SERVER` first for a star, between clients for gossip.
    """

    missions: tuple[Mission, ...]
    meetings: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scenario:
    """A whole federated reconnaissance.

    Rows number the training samples of the data first and its test samples after them, so that
    drawings may change sides between repetitions.

    Attributes:
        data_hash: of the samples (:attr:`protocl.data.arrays.ArrayData.content_hash`).
        clients: number of clients.
        base_rows: training samples of the base classes, known to all from the start.
        test_rows: samples that every evaluation draws on; those of the classes known by then.
        steps: in order.
        seed: from which it was drawn.
    """

    data_hash: str
    clients: int
    base_rows: tuple[int, ...]
    test_rows: tuple[int, ...]
    steps: tuple[Step, ...]
    seed: int

    @property
    def missions(self) -> Iterator[Mission]:
        """All missions in order."""
        return (mission for step in self.steps for mission in step.missions)

    @property
    def has_server(self) -> bool:
        """Whether any meeting is with the server."""
        return any(SERVER in meeting for step in self.steps for meeting in step.meetings)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        atomic_write(path, json.dumps({"format": FORMAT, **asdict(self)}))

    @classmethod
    def load(cls, path: Path) -> Scenario:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is absent or not a scenario.
        """
        if not path.is_file():
            raise DataError(f"scenario {path} does not exist; give scenario.file=FILE.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            steps = tuple(_step(step) for step in content.pop("steps"))
            for key in ("base_rows", "test_rows"):
                content[key] = tuple(content[key])
            return cls(**content, steps=steps)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a scenario of protocl: {error}") from error


def _mission(content: dict[str, Any]) -> Mission:
    # A scenario that an earlier version saved has no samples without labels.
    return Mission(content["client"], tuple(content["rows"]), tuple(content.get("unlabelled", ())))


def _step(content: dict[str, list[Any]]) -> Step:
    return Step(
        tuple(_mission(m) for m in content["missions"]),
        tuple((a, b) for a, b in content["meetings"]),
    )
