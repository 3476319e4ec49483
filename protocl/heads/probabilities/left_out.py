"""Logits of samples by a head that has not seen them: their share is taken out of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.batch import check_batch
from protocl.memory.rows import find_rows

if TYPE_CHECKING:
    from protocl.heads.base import Head


def left_out_logits(
    head: Head, memory: PrototypeMemory, features: Tensor, labels: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """Logits ``(n, C)`` and right columns ``(n,)`` of samples that ``memory`` holds.

    The samples fall into ``parts``, alike in their classes. Each part is subtracted from the
    memory, a head like ``head`` is fitted to the rest, and answers for the part. A sample without
    which its class would be gone is passed over.

    Args:
        head: fitted to ``memory``.
        memory: holds these samples and any others.
        features, labels: ``(N, D)`` and ``(N,)``.
        parts: 2 or more; each costs a fit. The fewer samples of all are at hand here, the
            less a part takes away.
    """
    twin = head.twin()
    logits = [features.new_zeros(0, len(memory), device=memory.device)]
    right = [torch.zeros(0, dtype=torch.int64, device=memory.device)]
    for rows, samples, rest in left_out_parts(memory, features, labels, parts):
        logits.append(twin.fit(rest)(samples))
        right.append(rows)
    return torch.cat([block.to(logits[-1]) for block in logits]), torch.cat(right)


def left_out_parts(
    memory: PrototypeMemory, features: Tensor, labels: Tensor, parts: int
) -> Iterator[tuple[Tensor, Tensor, PrototypeMemory]]:
    """Samples that ``memory`` holds, and the memory without them, part by part.

    Args:
        memory, features, labels, parts: see :func:`left_out_logits`.

    Yields:
        Rows ``(n,)`` of the samples' classes in the memory, their features ``(n, D)``, and the
        rest, which has all classes.
    """
    if parts < 2:
        raise ValueError(f"parts={parts}: expected 2 or more")
    check_batch(features, labels, memory.feature_dim)
    features, labels = features.to(memory.device), labels.to(memory.device).contiguous()
    rows = find_rows(memory.class_ids, labels)
    for chosen in _parts(rows, memory.count, parts):
        part = memory.empty_like().update(features[chosen], labels[chosen])
        yield rows[chosen], features[chosen], memory - part


def _parts(rows: Tensor, counts: Tensor, parts: int) -> Iterator[Tensor]:
    """Samples of each part; every class keeps a sample, here or elsewhere."""
    places = _places_in_class(rows, len(counts))
    for part in range(parts):
        chosen = places % parts == part
        taken = torch.bincount(rows[chosen], minlength=len(counts))
        chosen &= (taken < counts)[rows]
        if bool(chosen.any()):
            yield chosen.nonzero()[:, 0]


def _places_in_class(rows: Tensor, classes: int) -> Tensor:
    """``(N,)``: how many samples of its class come before a sample."""
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows, minlength=classes)
    starts = (counts.cumsum(0) - counts)[rows[order]]
    places = torch.empty_like(rows)
    places[order] = torch.arange(len(rows), device=rows.device) - starts
    return places
