"""A prototype memory from statistics that were computed, not summed from samples."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory.batch import Level
from protocl.memory.memory import PrototypeMemory


def memory_with(
    like: PrototypeMemory,
    level: Level,
    *,
    classes: Tensor,
    counts: Tensor,
    sums: Tensor,
    second_moment: Tensor | None = None,
) -> PrototypeMemory:
    """A memory of the same backbone as ``like`` that holds the given statistics.

    Args:
        like: gives width, device and fingerprint.
        level: decides the shape of ``second_moment``, see :class:`.PrototypeMemory`.
        classes: ``(C,)`` distinct class ids, in any order (of which ``shared`` is independent).
        counts: ``(C,)`` samples of each.
        sums: ``(C, D)`` float64.
        second_moment: ``(C, D)``, ``(D, D)`` or ``(C, D, D)`` float64; None for level ``mean``.

    Raises:
        ValueError: ``like`` keeps mapped, raw or fixed-point sums, which such statistics are not.
    """
    require_plain(like)
    order = classes.argsort()
    memory = like.empty_like(level)
    state = memory.state_dict()
    state |= {"class_ids": classes[order], "count": counts[order], "sum": sums[order]}
    if second_moment is not None:
        state["second"] = second_moment if level == "shared" else second_moment[order]
    state |= {
        f"{name}_low": torch.zeros_like(state[name]) for name in ("sum", "second") if name in state
    }
    memory.load_state_dict(state)
    return memory


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
