"""Finding, reading and checking the results of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocl.config.former import in_present_form
from protocl.errors import DataError
from protocl.io.names import WEIGHTS_FILE
from protocl.report.result import (
    CONFIG_FILE,
    RESULT_FILE,
    Answers,
    Result,
    Round,
    Trained,
)

_WITHOUT_ANSWERS = {
    "pretraining": "the training of an embedding",
    "discovery": "a discovery of categories",
}


@dataclass(frozen=True)
class Skipped:
    """A run that is not part of a comparison, and why."""

    path: Path
    reason: str


class Run(Answers):
    """One run's ``result.json``, checked, with the ``config.yaml`` beside it.

    Attributes:
        path: run directory.
        config: the resolved configuration; empty where ``config.yaml`` is missing.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def from_result(cls, result: Any, path: Path, config: dict[str, Any] | None = None) -> Run:
        """Check the parsed content of a ``result.json``.

        Raises:
            DataError: a field is missing, of the wrong type, or contradicts another one.
        """
        without = _WITHOUT_ANSWERS.get(Result.read(result).kind)
        if without is not None:
            raise DataError(f"{without}, which has no answers to compare")
        return cls.read(result, path=path, config=config or {})

    def __repr__(self) -> str:
        learnt = f"{self.title} on {self.benchmark.name}, seed {self.seed}"
        found = f"accuracy {self.accuracy:.4f}" if self.stream_accuracy else "nothing evaluated yet"
        return f"<{learnt}: {found} ({self.path})>"

    __str__ = __repr__

    @property
    def accuracy(self) -> float:
        """Accuracy on all classes seen by now, in [0, 1]; NaN before any evaluation."""
        return self.stream_accuracy[-1] if self.stream_accuracy else math.nan

    @property
    def title(self) -> str:
        """What the strategy is called in a report."""
        return self.strategy.title or self.strategy.name

    @property
    def experiences(self) -> list[list[int]]:
        """``T`` lists of class ids, in the order in which they were learnt."""
        return self.benchmark.classes_per_experience

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """Lower-triangular rows, see :mod:`protocl.metrics.class_incremental`."""
        return self.metrics.accuracy_matrix

    @property
    def stream_accuracy(self) -> list[float]:
        """Accuracy on all classes seen, after each experience, in [0, 1]."""
        return self.metrics.stream_accuracy

    @property
    def rounds(self) -> list[Round]:
        """Those of a federation; empty for other runs."""
        return [] if self.federation is None else self.federation.rounds

    @property
    def classes_seen(self) -> list[int]:
        """Number of classes seen after each evaluated experience."""
        sizes = [len(classes) for classes in self.experiences]
        return [sum(sizes[: t + 1]) for t in range(len(self.stream_accuracy))]

    def class_name(self, class_id: int) -> str:
        """What the data set calls a class; its id where it has no name."""
        names = self.benchmark.class_names
        return names[class_id] if 0 <= class_id < len(names) else str(class_id)

    def exchanged(self, direction: Literal["up", "down"]) -> float | None:
        """Bytes from or to all clients over all rounds; None without a federation."""
        if not self.rounds:
            return None
        return float(sum(getattr(one, f"bytes_{direction}") for one in self.rounds))

    @property
    def seconds(self) -> float:
        """Wall time of all phases."""
        return math.fsum(phase.seconds for phase in self.phases)

    @property
    def peak_mib(self) -> float | None:
        """Highest memory use of all phases, in MiB."""
        return max((phase.peak_mib for phase in self.phases), default=None)


class Embedding(Trained):
    """The ``result.json`` of a pretraining, checked, with the ``config.yaml`` beside it.

    Attributes:
        path, config: as of a :class:`Run`.
    """

    path: Path
    config: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file that ``backbone.checkpoint`` takes."""
        return self.path / WEIGHTS_FILE

    def __repr__(self) -> str:
        trained = f"{self.backbone.name} on {self.benchmark.name}, seed {self.seed}"
        epochs = self.pretraining.epochs
        loss = f"loss {epochs[-1].loss:.4f} after {len(epochs)} epochs" if epochs else "not trained"
        return f"<{trained}: {loss} ({self.path})>"

    __str__ = __repr__


def load_run(folder: Path | str) -> Run | Embedding:
    """Read a run of any kind: what it measured, and the settings that it had.

    Args:
        folder: of the run, or its ``result.json``. Earlier versions' results are read as well.

    Raises:
        DataError: there is no run, or its result is damaged or of a format that is not known; the
            message says which, and names the runs where ``folder`` holds several.

    Example:
        >>> load_run("nowhere")
        Traceback (most recent call last):
        protocl.errors.DataError: nowhere: there is no such folder
    """
    path = _run_directory(Path(folder).expanduser())
    try:
        result = _load_result(path)
        if Result.read(result).kind != "pretraining":
            return _answers(result, path)
        return Embedding.read(result, path=path, config=_load_config(path / CONFIG_FILE))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _answers(result: Any, path: Path) -> Run:
    """The run in ``path``, whose parsed result is given."""
    config = _load_config(path / CONFIG_FILE)
    flat = isinstance(result, dict) and result.get("format", 1) == 1
    return Run.from_result(result, path, in_present_form(config, flat=flat))


def _run_directory(path: Path) -> Path:
    """The directory of the one run that ``path`` means."""
    if path.is_file() and path.name in (RESULT_FILE, CONFIG_FILE):
        return path.parent
    if not path.is_dir():
        what = f"expected a run's folder or its {RESULT_FILE}" if path.exists() else ""
        raise DataError(f"{path}: {what or 'there is no such folder'}")
    if (path / RESULT_FILE).exists() or (path / CONFIG_FILE).exists():
        return path
    inside = _below(path)
    if not inside:
        raise DataError(f"{path}: {_why_empty(path, [str(path)])}")
    runs = "one run" if len(inside) == 1 else f"{len(inside)} runs"
    raise DataError(f"{path}: holds {runs}, and is none itself; load {inside[0]}, for one")


def _load_result(path: Path) -> Any:
    try:
        return json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"no {RESULT_FILE}: the run stopped before its first result; "
            "the same command with resume=true continues it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{RESULT_FILE} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{RESULT_FILE} is damaged, it is not JSON: {error}") from error


def load_runs(paths: Iterable[Path | str]) -> tuple[list[Run], list[Skipped]]:
    """Read every run under ``paths``: result files, run directories, folders of runs, globs.

    Returns:
        The complete runs, and the others with the reason why each is not among them.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for directory in _run_directories(paths, skipped):
        try:
            run = _answers(_load_result(directory), directory)
        except DataError as error:
            skipped.append(Skipped(directory, str(error)))
            continue
        if run.complete:
            runs.append(run)
        else:
            done, total = len(run.stream_accuracy), len(run.experiences)
            reason = f"not finished: {done} of {total} experiences; resume=true continues it"
            skipped.append(Skipped(directory, reason))
    return runs, skipped


def _run_directories(paths: Iterable[Path | str], skipped: list[Skipped]) -> Iterator[Path]:
    seen: set[Path] = set()
    for given in paths:
        text = str(Path(given).expanduser())
        matches = sorted(glob(text, recursive=True)) if has_magic(text) else [text]
        found = [run for match in matches for run in _below(Path(match))]
        if not found:
            skipped.append(Skipped(Path(given), _why_empty(Path(text), matches)))
        for directory in found:
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield directory


def _below(path: Path) -> Sequence[Path]:
    """Run directories at or below ``path``; a directory with only a config is one that stopped."""
    if path.is_file():
        return [path.parent] if path.name in (RESULT_FILE, CONFIG_FILE) else []
    markers = [*path.rglob(RESULT_FILE), *path.rglob(CONFIG_FILE)]
    return sorted({marker.parent for marker in markers})


def _why_empty(path: Path, matches: Sequence[str]) -> str:
    if not matches or not any(Path(match).exists() for match in matches):
        return "there is no such file or directory"
    return f"no {RESULT_FILE} found; expected a run directory or a folder of them"


def _load_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise DataError(f"{CONFIG_FILE} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{CONFIG_FILE} is damaged: expected 'key: value' lines")
    return {str(key): value for key, value in config.items()}
