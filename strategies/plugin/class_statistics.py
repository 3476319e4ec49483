"""Statistics of classes from features that come chunk by chunk, and their state on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.pending import PendingUpdates
from protocl.strategies.plugin.feature_buffer import FeatureChunk

NewMemory = Callable[[Tensor], PrototypeMemory]
"""An empty memory for features ``(N, D)``, on their device."""


def class_statistics(
    chunks: Iterable[FeatureChunk],
    new_memory: NewMemory,
    ids: Callable[[Tensor, Tensor | None], Tensor],
) -> PrototypeMemory | None:
    """Sum up features; None if none come.

    Args:
        chunks: features, labels and task labels.
        new_memory: makes the memory when the width of the features is known.
        ids: the memory's ids ``(B,)`` of labels ``(B,)`` under task labels ``(B,)`` or None.
    """
    memory: PrototypeMemory | None = None
    add: Any = None
    for features, labels, tasks in chunks:
        if memory is None:
            memory = new_memory(features)
            # An accelerator is not asked for numbers in the middle of its work.
            direct = memory.device.type == "cpu" or memory.level == "full" or memory.ordered
            add = memory if direct else PendingUpdates(memory)
        add.update(features, ids(labels, tasks))
    if isinstance(add, PendingUpdates):
        add.flush()
    return memory


def memory_state(memory: PrototypeMemory | None) -> dict[str, Any]:
    """``feature_dim`` and ``memory``: what it takes to make a memory again."""
    return {
        "feature_dim": None if memory is None else memory.feature_dim,
        "memory": None if memory is None else memory.state_dict(),
    }


def memory_from(
    state: dict[str, Any], new_memory: NewMemory, present: PrototypeMemory | None = None
) -> PrototypeMemory | None:
    """The memory of a state by :func:`memory_state`, read into ``present`` if there is one."""
    if state["memory"] is None:
        return None
    memory = present or new_memory(torch.empty(0, state["feature_dim"]))
    memory.load_state_dict(state["memory"])
    return memory
