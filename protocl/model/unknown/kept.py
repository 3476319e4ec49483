"""``unknown.json`` in the folder of a model: its score of unknown inputs, and the calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_write
from protocl.model.description import checksum_of
from protocl.open_world.calibration import ScoreCalibration
from protocl.open_world.scores.every import registered
from protocl.open_world.thresholds import ScoreHistogram

UNKNOWN = "unknown.json"


class _Calibration(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    keep: Annotated[float, Field(gt=0, le=1)]
    histogram: dict[str, Any]
    samples: PositiveInt
    classes: PositiveInt


class _Kept(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["protocl-unknown"] = "protocl-unknown"
    format_version: Literal[1] = 1
    score: str
    calibration: _Calibration | None


def write_unknown(folder: Path, score: str | None, calibration: ScoreCalibration | None) -> None:
    """Write what :func:`read_unknown` reads; nothing where there is no score."""
    file = folder / UNKNOWN
    if score is None:
        file.unlink(missing_ok=True)
        return
    held = None
    if calibration is not None and calibration.score == score:
        held = _Calibration(
            keep=calibration.keep, histogram=calibration.histogram.to_dict(),
            samples=calibration.samples, classes=calibration.classes,
        )  # fmt: skip
    content = _Kept(score=score, calibration=held).model_dump(mode="json")
    content["checksum"] = checksum_of(content)
    atomic_write(file, json.dumps(content, allow_nan=False) + "\n")


def read_unknown(folder: Path) -> tuple[str | None, ScoreCalibration | None]:
    """The name of a model's score of unknown inputs, and its calibration, if it has them.

    Raises:
        DataError: the file is damaged, or of a score that is not installed.
    """
    file = folder / UNKNOWN
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    try:
        if content.pop("checksum") != checksum_of(content):
            raise ValueError("its checksum is not that of its contents")
        kept = _Kept.model_validate(content)
        calibration = _restored(kept)
    except (AttributeError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise _damaged(file, error) from error
    try:
        registered(kept.score)
    except ConfigError as error:
        raise DataError(f"{file}: {error}; install the package that brings it") from error
    return kept.score, calibration


def _restored(kept: _Kept) -> ScoreCalibration | None:
    held = kept.calibration
    if held is None:
        return None
    histogram = ScoreHistogram.from_dict(held.histogram)
    return ScoreCalibration(kept.score, held.keep, histogram, held.samples, held.classes)


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} is damaged: {error}; restore it from a copy, or remove it and calibrate again"
    )
