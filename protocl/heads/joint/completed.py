"""Prototypes in feature spaces that came after the samples of their class: EASE."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import unit


def completed_prototypes(memories: Sequence[PrototypeMemory]) -> tuple[Tensor, Tensor]:
    """Prototypes of all classes in all feature spaces, side by side, where some were never seen.

    A method that adds a feature space with each experience (an adapter, a copy of the backbone)
    keeps a memory of each: the first knows all classes, each later one those from its experience
    on. What a class ``c`` would have had in a later space ``j`` is put together from the classes
    ``k`` that are known there, by their likeness in the last space ``i`` that knows ``c``::

        p_cj = sum_k softmax_k(cos(p_ci, p_ki)) p_kj

    A function of class means alone, so that merged memories give what one place gives.

    Args:
        memories: one of each space, in the order in which they came, of any level. Each knows
            classes that all before it know as well.

    Returns:
        Class ids ``(C,)`` ascending, and their prototypes ``(C, sum W)`` float64.

    Raises:
        ValueError: there are none, one is empty, or knows a class that one before it does not.

    Source: Zhou et al. 2024, "Expandable subspace ensemble for pre-trained model-based
    class-incremental learning" (EASE), the authors' code.

    Example:
        >>> first = PrototypeMemory(2).update(torch.eye(2), torch.tensor([0, 1]))
        >>> second = PrototypeMemory(1).update(torch.tensor([[5.0]]), torch.tensor([1]))
        >>> completed_prototypes([first, second])[1].tolist()  # class 0 is like 1, all there is
        [[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]]
    """
    _require_nested(memories)
    classes = memories[0].classes
    known = torch.stack([torch.isin(classes, memory.classes) for memory in memories])
    own = known.sum(0) - 1
    blocks = [memories[0].means]
    for space, memory in enumerate(memories[1:], start=1):
        means = memory.means
        block = means.new_zeros(len(classes), memory.width)
        block[known[space]] = means
        for last in own[own < space].unique().tolist():
            absent, present = own == last, known[space]
            likeness = unit(blocks[last][absent]) @ unit(blocks[last][present]).T
            block[absent] = likeness.softmax(1) @ means
        blocks.append(block)
    return classes, torch.cat(blocks, 1)


def _require_nested(memories: Sequence[PrototypeMemory]) -> None:
    if not memories or any(len(memory) == 0 for memory in memories):
        raise ValueError("expected one memory or more, each with a class")
    for place, (before, after) in enumerate(itertools.pairwise(memories), start=1):
        strange = after.classes[~torch.isin(after.classes, before.classes)].tolist()
        if strange:
            raise ValueError(
                f"memory {place} knows classes {strange}, which memory {place - 1} does not: every "
                "class is to be known in its own space and in all before it"
            )
