"""Statistics that were computed, not summed from samples, in the form that a memory stores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.memory.batch import LEVELS, Level, require_tensor
from protocl.memory.buffers import owned
from protocl.memory.rows import class_id_tensor
from protocl.memory.stored import StoredStatistics
from protocl.memory.summation import words_of_floats
from protocl.memory.symmetric import pack_triangles, require_symmetric

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory


def computed_parts(
    like: StoredStatistics,
    *,
    classes: Iterable[int] | Tensor,
    counts: Tensor,
    sums: Tensor | None,
    means: Tensor | None,
    raw_sums: Tensor | None,
    second_moment: Tensor | None,
    scatter: Tensor | None,
) -> dict[str, Tensor]:
    """The parts of a memory; see :meth:`protocl.PrototypeMemory.from_statistics`."""
    ids, counts = _checked_classes(class_id_tensor(classes), counts)
    values = {"sum": _sums(like, counts, sums, means)}
    if like.raw_means or raw_sums is not None:
        values["raw"] = _raw(like, counts, raw_sums)
    if like.level != "mean" or second_moment is not None or scatter is not None:
        centres = values["sum"] / counts[:, None] if means is None else means.to(torch.float64)
        values["second"] = _second(like, counts, centres, second_moment, scatter)
    order = ids.argsort()
    parts = {"class_ids": ids[order], "count": counts[order]}
    for name, form in like.forms.items():
        stored = _fixed_point(like, name, values[name]) if like.exact else {name: values[name]}
        parts |= {key: owned(v) if form.shared else v[order] for key, v in stored.items()}
    return parts


def between_classes(level: Level, means: Tensor, counts: Tensor) -> Tensor:
    """Second moment of samples that all lie on the means ``(C, W)`` of their classes."""
    counts = counts.to(torch.float64)[:, None]
    if level == "diagonal":
        return counts * means**2
    if level == "shared":
        return (means * counts).T @ means
    return (counts * means)[:, :, None] * means[:, None, :]


def require_plain(memory: PrototypeMemory) -> None:
    """Check that the statistics are sums of the features as they are.

    Raises:
        ValueError: they are mapped or in fixed point.
    """
    if memory.feature_map.spec != "identity" or memory.exact or memory.raw_means:
        raise ValueError(
            f"the memory sums features under the map '{memory.feature_map.spec}' "
            f"(exact={memory.exact}, raw_means={memory.raw_means}): expected sums of the features "
            "as they are in floating point, such as those of NearestMean() or LinearDiscriminant()"
        )


def _checked_classes(ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    require_tensor("counts", counts)
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"counts have dtype {counts.dtype}: expected integers")
    if counts.shape != ids.shape:
        raise ValueError(f"counts have shape {tuple(counts.shape)}: expected ({len(ids)},)")
    if len(ids.unique()) != len(ids) or bool((ids < 0).any()):
        raise ValueError("a class comes twice, or has an id below 0")
    if bool((counts < 1).any()):
        raise ValueError("a class has no samples: expected counts of 1 or more")
    return ids.to(counts.device), counts.to(torch.int64)


def _sums(
    like: StoredStatistics, counts: Tensor, sums: Tensor | None, means: Tensor | None
) -> Tensor:
    _require_one(sums=sums, means=means)
    size = (len(counts), like.width)
    if means is not None:
        return _checked("means", means, size) * counts[:, None]
    return _checked("sums", sums, size)


def _raw(like: StoredStatistics, counts: Tensor, raw_sums: Tensor | None) -> Tensor:
    if not like.raw_means:
        raise ValueError("raw_sums are given: this kind of memory keeps none (raw_means=False)")
    _require_one(raw_sums=raw_sums)
    return _checked("raw_sums", raw_sums, (len(counts), like.feature_dim))


def _second(
    like: StoredStatistics,
    counts: Tensor,
    means: Tensor,
    moment: Tensor | None,
    scatter: Tensor | None,
) -> Tensor:
    shape = LEVELS[like.level](like.width)
    if shape is None:
        raise ValueError("a memory of level 'mean' keeps no second moment; use another level")
    _require_one(second_moment=moment, scatter=scatter)
    size = tuple(len(counts) if n == -1 else n for n in shape)
    if scatter is None:
        second = _checked("second_moment", moment, size)
    else:
        second = _checked("scatter", scatter, size) + between_classes(like.level, means, counts)
    if like.level == "diagonal":
        return second
    require_symmetric("the second moment", second)
    return pack_triangles(second)


def _checked(name: str, values: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    require_tensor(name, values)
    assert values is not None
    if not values.is_floating_point():
        raise TypeError(f"{name} have dtype {values.dtype}: expected floating point")
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} have shape {tuple(values.shape)}: expected {shape}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} hold NaN or infinite values: expected finite numbers")
    return values.detach().to(torch.float64)


def _require_one(**given: Tensor | None) -> None:
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"expected {' or '.join(given)}, and one of them only")


def _fixed_point(like: StoredStatistics, name: str, values: Tensor) -> dict[str, Tensor]:
    """The parts of a sum: its words, one unless it needs two and has a place for them."""
    whole = torch.round(values / like.forms[name].unit)
    largest = float(whole.abs().max()) if whole.numel() else 0.0
    if largest < 2.0**63:
        return {name: whole.to(torch.int64)}
    high = like.other_half(name)
    if high is None or largest >= 2.0**126:
        words = ', or moments="pairs"' if name == "second" and high is None else ""
        raise OverflowError(
            f"'{name}' exceeds {64 if high is None else 126} bits in fixed point with step "
            f"{like.step:g}; use a larger step{words}"
        )
    return dict(zip((name, high), words_of_floats(whole), strict=True))
