"""What hostile clients send, to try defences on.

Each attack takes the honest memory of a client (level ``mean``) and gives the one it sends. An
attacker knows its own samples and the list of all classes, and passes every check of a single
message: counts are positive, values finite and within the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

Attack = Callable[[Sequence[PrototypeMemory], torch.Generator], list[PrototypeMemory]]
"""From the honest memories of all attackers to what they send."""

SCALE = -10.0
INFLATION = 1000
NOISE_NORM = 3.0


def flip_labels(
    honest: Sequence[PrototypeMemory], generator: torch.Generator
) -> list[PrototypeMemory]:
    """Every class goes under the name of the next one (of those that the attackers hold)."""
    classes = torch.unique(torch.cat([memory.classes for memory in honest]))
    following = classes.roll(-1)
    return [
        _with(memory, classes=following[torch.searchsorted(classes, memory.classes)])
        for memory in honest
    ]


def scale_vectors(
    honest: Sequence[PrototypeMemory], generator: torch.Generator
) -> list[PrototypeMemory]:
    """Sums times -10: far away, in the direction that no sample points to."""
    return [_with(memory, means=SCALE * memory.means) for memory in honest]


def random_vectors(
    honest: Sequence[PrototypeMemory], generator: torch.Generator
) -> list[PrototypeMemory]:
    """Means in random directions, three times as long as a typical one."""
    sent = []
    for memory in honest:
        means = memory.means
        noise = torch.randn(means.shape, generator=generator, dtype=torch.float64)
        length = NOISE_NORM * float(means.norm(dim=1).mean())
        sent.append(_with(memory, means=length * torch.nn.functional.normalize(noise, dim=1)))
    return sent


def inflate_counts(
    honest: Sequence[PrototypeMemory], generator: torch.Generator
) -> list[PrototypeMemory]:
    """Flipped labels, with a thousand times the samples."""
    flipped = flip_labels(honest, generator)
    return [_with(memory, counts=INFLATION * memory.counts) for memory in flipped]


def sybils(honest: Sequence[PrototypeMemory], generator: torch.Generator) -> list[PrototypeMemory]:
    """Attack under many names: all send nearly the flipped sum of what they have."""
    pooled = honest[0].empty_like()
    for memory in flip_labels(honest, generator):
        pooled.merge(memory)
    jitter = 1e-3 * float(pooled.means.norm(dim=1).mean()) / pooled.width**0.5
    return [
        _with(
            pooled,
            means=pooled.means
            + jitter * torch.randn(pooled.means.shape, generator=generator, dtype=torch.float64),
        )
        for _ in honest
    ]


ATTACKS: dict[str, Attack] = {
    "label flip": flip_labels,
    "scaled vectors": scale_vectors,
    "random vectors": random_vectors,
    "inflated counts": inflate_counts,
    "Sybils": sybils,
}


def _with(
    memory: PrototypeMemory,
    *,
    classes: Tensor | None = None,
    counts: Tensor | None = None,
    means: Tensor | None = None,
) -> PrototypeMemory:
    """The memory with other classes, counts or means."""
    if memory.level != "mean" or memory.exact:
        raise ValueError("attacks are made on memories of level 'mean' in floating point")
    return PrototypeMemory.from_statistics(
        memory,
        classes=memory.classes if classes is None else classes,
        counts=memory.counts if counts is None else counts,
        means=memory.means if means is None else means,
    )
