"""The content of ``result.json``: one shape for every kind of run, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from protocl import metrics
from protocl.errors import DataError

FORMAT = 2
RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
KINDS = {
    "experiment": "run",
    "federation": "federate",
    "reconnaissance": "reconnaissance",
    "pretraining": "pretrain",
    "discovery": "discover",
}
"""Kinds of runs, and the command of each. A kind also names what a result of it has besides."""

# Where nobody answered: a gap in the plot.
_Gap = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Stream(_Part):
    """The data of a run, and its classes in the order in which they came."""

    name: str
    data_hash: str
    classes_per_experience: list[list[int]]
    class_names: list[str]
    n_train: int | None = None
    n_test: int | None = None


class Backbone(_Part):
    """What made the features."""

    name: str
    fingerprint: str = ""


class Strategy(_Part):
    """What learned, and what it kept: ``state_bytes`` where that is a memory."""

    name: str
    title: str = ""
    keeps_data: bool
    stored: str = ""
    state_bytes: int | None = None


class Metrics(_Part):
    """Accuracies in [0, 1]; formulas in :mod:`protocl.metrics.class_incremental`."""

    accuracy_matrix: list[list[float]]
    stream_accuracy: list[float]
    average_incremental_accuracy: float = math.nan
    last_accuracy: float = math.nan
    forgetting: float = math.nan
    backward_transfer: float = math.nan
    expected_calibration_error: float | None = None
    accuracy_by_frequency: dict[str, float] = {}


class Confusion(_Part):
    """Counts ``(C, C)``: rows are true classes, columns predicted ones."""

    classes: list[int]
    counts: list[list[int]]


class Phase(_Part):
    """Wall time in seconds and highest memory use in MiB of one step of a run.

    It belongs to an experience, or to the whole run where that is None.
    """

    phase: str
    experience: int | None = None
    seconds: float
    peak_mib: float = 0.0


class Round(_Part):
    """Accuracy in [0, 1] after one round of a federation, and bytes of all its messages.

    The accuracy is on ``evaluated`` test samples of the ``classes`` that have arrived; ``seconds``
    are without that evaluation.
    """

    accuracy: _Gap = math.nan
    bytes_up: int
    bytes_down: int
    round: int | None = None
    classes: int | None = None
    evaluated: int | None = None
    seconds: float | None = None


class OnePlace(_Part):
    """The merged memory beside that of all samples in one place: what ``verify=true`` asks for.

    Attributes:
        identical: they hold the same bits.
        difference: largest difference of a sum or second moment, relative to the largest of these;
            None where classes or counts differ, as when a client was never asked.
        samples: in one place.
        merged_samples: that the merged memory counts.
        accuracy: of the head on the memory of one place, in [0, 1].
        federated_accuracy: of the head on the merged memory.
        estimated_error: where the merged second moment is an estimate, ``|S - S'| / |S'|`` of its
            covariance within classes ``S`` and the exact one (Frobenius norms); else None.
    """

    identical: bool
    difference: float | None
    samples: int
    merged_samples: int
    accuracy: float
    federated_accuracy: float
    estimated_error: float | None = None

    def __str__(self) -> str:
        return (
            f"merged memory {self._agreement}; "
            f"accuracy {100 * self.federated_accuracy:.2f} %, in one place "
            f"{100 * self.accuracy:.2f} %"
        )

    @property
    def _agreement(self) -> str:
        if self.estimated_error is not None and self.difference is not None:
            return (
                "has an estimated covariance, "
                f"{100 * self.estimated_error:.1f} % off that of one place"
            )
        if self.identical:
            return "equals that of one place bit for bit"
        if self.difference is not None:
            return f"equals that of one place to {self.difference:.1e}"
        counted = f"{self.merged_samples:,} of {self.samples:,} samples"
        return f"does not hold the counts of one place ({counted})"


class Federation(_Part):
    """What only a federation has.

    Contributions are counted by what became of them, and those refused by the reason.
    """

    rounds: list[Round]
    clients: int | None = None
    bytes_by_message_type: dict[str, dict[str, int]] = {}
    contributions: dict[str, int] = {}
    rejected_for: dict[str, int] = {}
    privacy: dict[str, Any] | None = None
    one_place: OnePlace | None = None


class Epoch(_Part):
    """Mean loss of one epoch, and the accuracy in [0, 1] on the classes held out, if there are."""

    epoch: int
    loss: float
    accuracy: float | None = None
    seconds: float | None = None


class Pretraining(_Part):
    """What only the training of an embedding has."""

    base_classes: list[int]
    held_out_classes: list[int]
    epochs: list[Epoch]


class Result(_Part):
    """What the results of all kinds of runs have in common."""

    kind: Literal["experiment", "federation", "reconnaissance", "pretraining", "discovery"]
    name: str
    seed: int
    status: Literal["running", "complete"]
    benchmark: Stream
    backbone: Backbone
    phases: list[Phase]
    versions: dict[str, str] = {}
    git: dict[str, Any] | None = None
    machine: dict[str, Any] = {}

    @classmethod
    def read(cls, content: Any, **more: Any) -> Self:
        """Check the parsed content of a ``result.json``, of this format or an older one.

        Args:
            content: as parsed.
            more: fields that are not in the file.

        Raises:
            DataError: it names the first field that is missing, of the wrong type, or contradicts
                another one.
        """
        try:
            return cls.model_validate({**upgraded(content), **more})
        except ValidationError as error:
            raise DataError(_first(error)) from error

    @property
    def complete(self) -> bool:
        """Whether nothing of the run remains to be done."""
        return self.status == "complete"


class Trained(Result):
    """The result of a pretraining: a network, and no answers yet."""

    pretraining: Pretraining


class Answers(Result):
    """The result of a run that answers test samples: of every kind but a pretraining."""

    strategy: Strategy
    metrics: Metrics
    confusion: Confusion
    federation: Federation | None = None
    reconnaissance: dict[str, Any] | None = None

    def model_post_init(self, context: Any) -> None:
        """Hold the parts against each other."""
        self._check_shapes()
        if self.metrics.stream_accuracy:
            self._check_metrics()

    def _check_shapes(self) -> None:
        matrix, stream = self.metrics.accuracy_matrix, self.metrics.stream_accuracy
        done, total = len(stream), len(self.benchmark.classes_per_experience)
        if len(matrix) != done or done > total or (self.complete and done < total):
            raise DataError(
                f"metrics cover {len(matrix)} rows of accuracy_matrix and {done} of "
                f"stream_accuracy, but the benchmark has {total} experiences"
            )
        width, counts = len(self.confusion.classes), self.confusion.counts
        if len(counts) != width or any(len(row) != width for row in counts):
            raise DataError(f"confusion.counts should be {width} x {width}, as confusion.classes")

    def _check_metrics(self) -> None:
        """The numbers stored must be those that the accuracy matrix gives."""
        matrix, stream = self.metrics.accuracy_matrix, self.metrics.stream_accuracy
        try:
            expected = {
                "average_incremental_accuracy": metrics.average_incremental_accuracy(stream),
                "last_accuracy": metrics.last_accuracy(stream),
                "forgetting": metrics.forgetting(matrix),
                "backward_transfer": metrics.backward_transfer(matrix),
            }
        except ValueError as error:
            raise DataError(f"metrics are damaged: {error}") from error
        for name, value in expected.items():
            stored = getattr(self.metrics, name)
            if not math.isclose(stored, value, abs_tol=1e-9):
                raise DataError(
                    f"metrics.{name} is {stored}, but the accuracies beside it give {value}: "
                    "the file was changed after the run"
                )


def upgraded(content: Any) -> dict[str, Any]:
    """The content of a result in the shape of this format.

    Raises:
        DataError: it is no object, or of a format that is not known.
    """
    if not isinstance(content, Mapping):
        raise DataError(f"the file should be an object, but is {_brief(content)}")
    version = content.get("format", 1)
    if version == FORMAT:
        return dict(content)
    if version != 1:
        raise DataError(
            f"format is {version}, but this version of protocl reads 1 to {FORMAT}; "
            "run the experiment again or compare with the version that wrote it"
        )
    if content.get("kind") == "pretraining":
        return _pretraining(content)
    kind = next((kind for kind in KINDS if kind in content), "experiment")
    return {**content, "format": FORMAT, "kind": kind}


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 had no section of its own for it, and said nothing of data and phases."""
    keys = ("base_classes", "held_out_classes", "epochs")
    section = {key: content.get(key, []) for key in keys}
    benchmark = {
        "name": "", "data_hash": "", "class_names": [],
        "classes_per_experience": [section["base_classes"]],
    }  # fmt: skip
    kept = {key: value for key, value in content.items() if key not in keys}
    added = {"format": FORMAT, "benchmark": benchmark, "phases": [], "pretraining": section}
    return {**kept, **added}


def _first(error: ValidationError) -> str:
    """What is wrong with the first field of those that do not fit."""
    first = error.errors()[0]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])[1:]
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} {first['msg'].removeprefix('Input ')}, but is {_brief(first['input'])}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
