"""From noisy statistics back to statistics that some samples could have.

Noise turns second moments into matrices with negative eigenvalues and sums into ones too large for
their counts; heads cannot work with the former and do badly with the latter. Moving to plausible
values uses nothing but the noisy ones, so it costs no privacy (post-processing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import Tukey
from protocl.memory.from_statistics import between_classes


@torch.no_grad()
def make_plausible(memory: PrototypeMemory, clip: float, floor: float = 0.0) -> PrototypeMemory:
    """A copy whose means have norm ``clip`` at most and whose scatter is positive semidefinite.

    Args:
        memory: in fixed point, with noise.
        clip: the norm that its samples were clipped to.
        floor: least variance sum in any direction. Below the noise nothing is known about it, and
            a head that divides by it would amplify the noise of the means.
    """
    if len(memory) == 0:
        return memory.copy()
    counts = memory.counts
    # Tukey's transform takes features of 0 and above; so are its powers, and their means.
    tukey = memory.feature_map if isinstance(memory.feature_map, Tukey) else None
    means = _shortened(memory.means, clip, tukey is not None and tukey.power > 0)
    second = raw = None
    if memory.level != "mean":
        between = between_classes(memory.level, means, counts)
        second = between + _at_least(floor, memory.second_moment - between, memory.level)
    if memory.raw_means:
        raw = _shortened(memory.unmapped_means, clip, tukey is not None) * counts[:, None]
    return PrototypeMemory.from_statistics(
        memory, classes=memory.classes, counts=counts, means=means, raw_sums=raw,
        second_moment=second,
    )  # fmt: skip


def _shortened(means: Tensor, length: float, nonnegative: bool) -> Tensor:
    """Rows of ``length`` at most, and of no negative entries where there can be none."""
    means = means.clamp_min(0.0) if nonnegative else means
    return means * (length / means.norm(dim=1, keepdim=True)).clamp_max(1.0)


def _at_least(floor: float, scatter: Tensor, level: str) -> Tensor:
    """Nearest scatter (in Frobenius norm) with ``floor`` or more in every direction."""
    if level == "diagonal":
        return scatter.clamp_min(floor)
    values, vectors = torch.linalg.eigh(scatter)
    nearest = (vectors * values.clamp_min(floor)[..., None, :]) @ vectors.mT
    return (nearest + nearest.mT) / 2
