"""Rows of a table for classes that arrive in any order, with any ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protocl.memory.rows import find_rows


class ClassRows(nn.Module):
    """Gives each class the next free row; rows never move, so tables grow at their end.

    Example:
        >>> rows = ClassRows()
        >>> rows.add(torch.tensor([7, 3])).tolist(), rows.add(torch.tensor([5, 7])).tolist()
        ([3, 7], [5])
        >>> rows(torch.tensor([7, 5])).tolist()
        [1, 2]
    """

    _ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_ids", torch.zeros(0, dtype=torch.int64))

    @property
    def ids(self) -> Tensor:
        """``(R,)`` int64 class ids in the order of their rows."""
        return self._ids.clone()

    def __len__(self) -> int:
        return len(self._ids)

    def __bool__(self) -> bool:
        """Always true: a table without rows is still a table."""
        return True

    def add(self, classes: Tensor) -> Tensor:
        """Append those of ``classes`` that have no row, in ascending order.

        Returns:
            Their ids.
        """
        ids = self._ids
        classes = classes.to(ids).unique()
        new = classes[~torch.isin(classes, ids)]
        self._ids = torch.cat([ids, new])
        return new

    def forward(self, labels: Tensor) -> Tensor:
        """Rows ``(N,)`` of class ids ``(N,)``.

        Raises:
            ValueError: a class has no row (on an accelerator: a device-side assertion).
        """
        return find_rows(self._ids.to(labels.device), labels)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        stored = state_dict.get(f"{prefix}_ids")
        if stored is not None:
            self._ids = self._ids.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
