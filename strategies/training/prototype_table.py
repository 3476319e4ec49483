"""Trainable prototypes, one a class, that grow with the classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.memory import PrototypeMemory
from protocl.strategies.training.row_index import ClassRows


class PrototypeTable(nn.Module):
    """Prototypes as parameters, all trainable for ever.

    Each call of :meth:`add` makes one parameter of its own, so that an optimizer's state for the
    rows that exist is never touched.

    Args:
        feature_dim: width ``D``.
        dtype: of the parameters.

    Attributes:
        rows: class id -> row of the table.
    """

    experiences: Tensor

    def __init__(self, feature_dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.dtype = dtype
        self.rows = ClassRows()
        self.parts = nn.ParameterList()
        self.register_buffer("experiences", torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        """Always true: a table without rows is still a table."""
        return True

    def table(self) -> Tensor:
        """``(K, D)``, with a gradient to every row."""
        return torch.cat([*self.parts])

    def add(self, class_ids: Tensor, starts: PrototypeMemory | None = None) -> None:
        """Append rows for those of ``class_ids`` that have none, in ascending order.

        Args:
            class_ids: ``(K,)``.
            starts: statistics of these classes; rows start at their means, scaled to unit length.
                Without them rows are drawn from ``U(-1 / sqrt(D), 1 / sqrt(D))``, as torch draws
                the weights of a linear layer.
        """
        new = self.rows.add(class_ids)
        if len(new) == 0:
            return
        device = self.experiences.device
        if starts is None:
            bound = 1 / math.sqrt(self.feature_dim)
            rows = torch.empty(len(new), self.feature_dim, dtype=self.dtype, device=device)
            rows.uniform_(-bound, bound)
        else:
            rows = functional.normalize(starts.subset(new).means, dim=1).to(device, self.dtype)
        number = torch.full_like(new, len(self.parts)).to(self.experiences.device)
        self.parts.append(nn.Parameter(rows))
        self.experiences = torch.cat([self.experiences, number])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The number of rows is part of the state.
        saved = state_dict[f"{prefix}experiences"]
        self.experiences = self.experiences.new_empty(saved.shape)
        sizes = [int(n) for n in torch.bincount(saved)] if len(saved) else []
        self.parts = nn.ParameterList(
            nn.Parameter(torch.empty_like(state_dict[f"{prefix}parts.{i}"], device=saved.device))
            for i in range(len(sizes))
        )
        super()._load_from_state_dict(state_dict, prefix, *args)
