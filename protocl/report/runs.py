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

from protocl import metrics
from protocl.errors import DataError
from protocl.report.fields import Fields

FORMAT = 1
RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Skipped:
    """A run that is not part of a comparison, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Phase:
    """Time and memory of one step of a run.

    Attributes:
        phase: ``"data"``, ``"features"``, ``"train"`` or ``"eval"``.
        experience: which experience the step belongs to, None for steps of the whole run.
        seconds: wall time.
        peak_mib: highest memory use, in MiB.
    """

    phase: str
    experience: int | None
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Round:
    """One round of a federation.

    Attributes:
        accuracy: after the round, in [0, 1].
        bytes_up, bytes_down: of all messages of the round.
    """

    accuracy: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Run:
    """One run's ``result.json``, checked, with the ``config.yaml`` beside it.

    Attributes:
        path: run directory.
        complete: whether every experience of the benchmark was learnt and evaluated.
        experiences: ``T`` lists of class ids, in the order in which they were learnt.
        accuracy_matrix: lower-triangular rows, see :mod:`protocl.metrics.class_incremental`.
        stream_accuracy: accuracy on all classes seen, after each experience, in [0, 1].
        calibration_error: expected calibration error after the last experience, if measured.
        confusion_classes: ``(C,)`` class ids of the rows and columns of ``confusion``.
        confusion: ``(C, C)`` counts, rows are true classes, columns predicted ones.
        config: the resolved configuration; empty where ``config.yaml`` is missing.
        rounds: of a federation; empty for other runs.
    """

    path: Path
    name: str
    seed: int
    complete: bool
    benchmark: str
    data_hash: str
    experiences: list[list[int]]
    class_names: list[str]
    n_train: int | None
    n_test: int | None
    strategy: str
    title: str
    keeps_data: bool
    stored: str
    state_bytes: int | None
    backbone: str
    fingerprint: str
    accuracy_matrix: list[list[float]]
    stream_accuracy: list[float]
    calibration_error: float | None
    confusion_classes: list[int]
    confusion: list[list[int]]
    phases: list[Phase]
    versions: dict[str, str]
    git: dict[str, Any]
    machine: dict[str, Any]
    config: dict[str, Any]
    rounds: list[Round]

    @classmethod
    def from_result(cls, result: Any, path: Path, config: dict[str, Any] | None = None) -> Run:
        """Check the parsed content of a ``result.json``.

        Raises:
            DataError: a field is missing, of the wrong type, or contradicts another one.
        """
        whole = Fields(result)
        if whole.optional("kind", str) == "pretraining":
            raise DataError("the training of an embedding, which has no answers to compare")
        if whole.get("format", int) != FORMAT:
            raise DataError(
                f"format is {whole.get('format', int)}, but this version of protocl reads "
                f"{FORMAT}; run the experiment again or compare with the version that wrote it"
            )
        benchmark, strategy = whole.inside("benchmark"), whole.inside("strategy")
        backbone, confusion = whole.inside("backbone"), whole.inside("confusion")
        measured = whole.inside("metrics")
        run = cls(
            path=path,
            name=whole.get("name", str),
            seed=whole.get("seed", int),
            complete=whole.get("status", str) == "complete",
            benchmark=benchmark.get("name", str),
            data_hash=benchmark.get("data_hash", str),
            experiences=benchmark.rows_of("classes_per_experience", int),
            class_names=benchmark.list_of("class_names", str),
            n_train=benchmark.optional("n_train", int),
            n_test=benchmark.optional("n_test", int),
            strategy=strategy.get("name", str),
            title=strategy.optional("title", str) or strategy.get("name", str),
            keeps_data=strategy.get("keeps_data", bool),
            stored=strategy.optional("stored", str) or "",
            state_bytes=strategy.optional("state_bytes", int),
            backbone=backbone.get("name", str),
            fingerprint=backbone.optional("fingerprint", str) or "",
            accuracy_matrix=measured.rows_of("accuracy_matrix", float),
            stream_accuracy=measured.list_of("stream_accuracy", float),
            calibration_error=measured.optional("expected_calibration_error", float),
            confusion_classes=confusion.list_of("classes", int),
            confusion=confusion.rows_of("counts", int),
            phases=[_phase(entry, i) for i, entry in enumerate(whole.get("phases", list))],
            versions=whole.optional("versions", dict) or {},
            git=whole.optional("git", dict) or {},
            machine=whole.optional("machine", dict) or {},
            config=config or {},
            rounds=_rounds(whole),
        )
        _check_shapes(run)
        _check_metrics(run, measured)
        return run

    @property
    def classes_seen(self) -> list[int]:
        """Number of classes seen after each evaluated experience."""
        sizes = [len(classes) for classes in self.experiences]
        return [sum(sizes[: t + 1]) for t in range(len(self.stream_accuracy))]

    def class_name(self, class_id: int) -> str:
        """What the data set calls a class; its id where it has no name."""
        named = 0 <= class_id < len(self.class_names)
        return self.class_names[class_id] if named else str(class_id)

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


def load_run(path: Path) -> Run:
    """Read the run in directory ``path``.

    Raises:
        DataError: the result is absent, damaged or of another format.
    """
    file = path / RESULT_FILE
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"no {RESULT_FILE}: the run stopped before its first result; "
            "the same command with resume=true continues it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{RESULT_FILE} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{RESULT_FILE} is damaged, it is not JSON: {error}") from error
    return Run.from_result(result, path, _load_config(path / CONFIG_FILE))


def load_runs(paths: Iterable[Path | str]) -> tuple[list[Run], list[Skipped]]:
    """Read every run under ``paths``: result files, run directories, folders of runs, globs.

    Returns:
        The complete runs, and the others with the reason why each is not among them.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for directory in _run_directories(paths, skipped):
        try:
            run = load_run(directory)
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


def _phase(entry: Any, index: int) -> Phase:
    fields = Fields(entry, f"phases[{index}]")
    return Phase(
        phase=fields.get("phase", str),
        experience=fields.optional("experience", int),
        seconds=fields.get("seconds", float),
        peak_mib=fields.optional("peak_mib", float) or 0.0,
    )


def _rounds(whole: Fields) -> list[Round]:
    if whole.optional("federation", dict) is None:
        return []
    entries = whole.inside("federation").list_of("rounds", dict)
    fields = [Fields(entry, f"federation.rounds[{i}]") for i, entry in enumerate(entries)]
    return [
        # Not a number where nobody answered, which leaves a gap in the plot.
        Round(_or_nan(one, "accuracy"), one.get("bytes_up", int), one.get("bytes_down", int))
        for one in fields
    ]


def _or_nan(fields: Fields, key: str) -> float:
    value = fields.optional(key, float)
    return math.nan if value is None else value


def _check_shapes(run: Run) -> None:
    done, total = len(run.stream_accuracy), len(run.experiences)
    if len(run.accuracy_matrix) != done or done > total or (run.complete and done < total):
        raise DataError(
            f"metrics cover {len(run.accuracy_matrix)} rows of accuracy_matrix and {done} of "
            f"stream_accuracy, but the benchmark has {total} experiences"
        )
    width = len(run.confusion_classes)
    if len(run.confusion) != width or any(len(row) != width for row in run.confusion):
        raise DataError(f"confusion.counts should be {width} x {width}, as confusion.classes")


def _check_metrics(run: Run, stored: Fields) -> None:
    """The numbers stored must be those that the accuracy matrix gives."""
    if not run.stream_accuracy:
        return
    try:
        expected = {
            "average_incremental_accuracy": metrics.average_incremental_accuracy(
                run.stream_accuracy
            ),
            "last_accuracy": metrics.last_accuracy(run.stream_accuracy),
            "forgetting": metrics.forgetting(run.accuracy_matrix),
            "backward_transfer": metrics.backward_transfer(run.accuracy_matrix),
        }
    except ValueError as error:
        raise DataError(f"metrics are damaged: {error}") from error
    for name, value in expected.items():
        if not math.isclose(stored.get(name, float), value, abs_tol=1e-9):
            raise DataError(
                f"metrics.{name} is {stored.get(name, float)}, but the accuracies beside it "
                f"give {value}: the file was changed after the run"
            )
