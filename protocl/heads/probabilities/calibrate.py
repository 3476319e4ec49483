"""From a memory, or from left-out samples, to the calibration of a head."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from protocl.heads.probabilities.calibration import Calibration, fit_calibration
from protocl.heads.probabilities.left_out import left_out_logits
from protocl.heads.probabilities.table import CalibrationTable
from protocl.heads.probabilities.virtual_samples import virtual_samples
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.precision import without_autocast

if TYPE_CHECKING:
    from protocl.heads.base import Head

_BELOW = 8
"""Half octaves below the inverse of a typical gap between logits at which a table begins."""


def level_for(required: Level) -> Level:
    """The least level that holds ``required`` and the pooled scatter."""
    return "shared" if required in ("mean", "shared") else "full"


def calibration_of(
    head: Head, memory: PrototypeMemory, table: CalibrationTable | None
) -> Calibration:
    """The calibration of a head fitted to ``memory``; see :meth:`protocl.heads.Head.calibrate`."""
    start = _start(head, memory)
    if table is not None:
        table.require(origin_of(head, memory), start)
        return fit_calibration(table, memory.total)
    samples, rows = virtual_samples(memory)
    logits = _without_autocast(head, samples)
    return fit_calibration(CalibrationTable.of(logits, rows, start=start), memory.total)


def left_out_table(
    head: Head, memory: PrototypeMemory, features: Tensor, labels: Tensor, parts: int
) -> CalibrationTable:
    """The table behind :meth:`protocl.heads.Head.calibration_table`."""
    logits, rows = left_out_logits(head, memory, features, labels, parts)
    origin = origin_of(head, memory)
    return CalibrationTable.of(logits, rows, start=_start(head, memory), origin=origin)


def _without_autocast(head: Head, mapped: Tensor) -> Tensor:
    with without_autocast(mapped.device.type):
        return head.mapped_logits(mapped)


def _start(head: Head, memory: PrototypeMemory) -> int:
    """Exponent of the first inverse temperature, from how far logits of class means differ."""
    logits = _without_autocast(head, memory.means).double()
    classes = logits.shape[1]
    own = logits.diagonal()
    others = (logits.sum(1) - own) / max(classes - 1, 1)
    gap = float((own - others).mean()) if classes > 1 else 1.0
    return -_BELOW - (round(2 * math.log2(gap)) if 0 < gap < math.inf else 0)


def origin_of(part: nn.Module, memory: PrototypeMemory) -> str:
    """Digest of the statistics and of the settings of a head, or of another part."""
    digest = hashlib.sha256(repr((type(part).__name__, _settings(part))).encode())
    for piece in _pieces(memory):
        digest.update(piece)
    return digest.hexdigest()[:32]


def _pieces(memory: PrototypeMemory) -> Iterator[bytes]:
    yield repr(memory.describe()).encode()
    for name, buffer in memory.named_buffers(recurse=False):
        yield name.encode()
        yield buffer.cpu().contiguous().numpy().tobytes()


def _settings(part: nn.Module) -> list[tuple[str, object]]:
    """The settings of a head, or of a part of one, by name."""
    # As they were given, since not all are kept under their names, and as they are by now.
    given = getattr(part, "_given", {})
    held = {**given, **vars(part), **dict(part.named_children())}
    return sorted(
        ((name, _setting(value)) for name, value in held.items() if _is_setting(name)),
        key=lambda pair: pair[0],
    )


def _is_setting(name: str) -> bool:
    return not name.startswith("_") and name != "training"


def _setting(value: object) -> object:
    """What ``repr`` writes alike for equal settings, in every process."""
    if isinstance(value, FeatureMap):
        return value.spec
    if isinstance(value, tuple | list | nn.ModuleList):
        return tuple(map(_setting, value))
    if isinstance(value, Mapping):
        return tuple((name, _setting(one)) for name, one in value.items())
    if isinstance(value, Tensor | np.ndarray):  # their reprs leave most numbers out
        return str(value.dtype), value.tolist()
    if isinstance(value, PrototypeMemory):
        return hashlib.sha256(b"".join(_pieces(value))).hexdigest()
    if isinstance(value, nn.Module):
        return type(value).__name__, _settings(value)
    if is_dataclass(value) and not isinstance(value, type):
        held = [(one.name, _setting(getattr(value, one.name))) for one in fields(value)]
        return type(value).__name__, held
    # Without a repr of its own an object would be written with its place in memory.
    described = type(value).__repr__ is not object.__repr__ and not callable(value)
    return value if described else type(value).__name__
