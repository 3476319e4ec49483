"""Variance that is added to what was summed or estimated."""

from __future__ import annotations

from protocl.memory.memory import PrototypeMemory


def with_variance(memory: PrototypeMemory, gamma: float) -> PrototypeMemory:
    """A copy whose covariance within classes has ``gamma I`` more; no longer sums of samples.

    The scatter gets ``(N - C) gamma I``, as if each class's covariance had ``gamma`` more in every
    direction and were weighed by ``n_c - 1``.

    Args:
        memory: of level ``shared``.
        gamma: a variance, 0 or more.

    Raises:
        ValueError: ``gamma`` is negative, or the memory of another level.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma}: expected a variance of 0 or more")
    if memory.level != "shared":
        raise ValueError(f"level '{memory.level}': variance is added to level 'shared'")
    second = memory.second_moment
    second.diagonal().add_(gamma * (memory.total - len(memory)))
    return PrototypeMemory.from_statistics(
        kind_with_variance(memory, gamma),
        classes=memory.classes, counts=memory.counts, sums=memory.sums, second_moment=second,
    )  # fmt: skip


def kind_with_variance(like: PrototypeMemory, gamma: float) -> PrototypeMemory:
    """An empty memory of the kind that :func:`with_variance` gives for those like ``like``."""
    return PrototypeMemory(
        like.feature_dim, "shared", feature_map=like.feature_map, fingerprint=like.fingerprint,
        estimated=f"{like.estimated or 'sums'}, gamma={gamma:g}", moments=like.moments,
    ).to(like.device)  # fmt: skip
