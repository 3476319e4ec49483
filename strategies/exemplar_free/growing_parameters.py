"""Parameters with a row for each class, whose saved state tells how many."""

from __future__ import annotations

from typing import Any

from torch import nn


class GrowingParameters(nn.Module):
    """Parameters and buffers whose first dimensions grow; saved states decide their shapes."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, nn.Parameter(parameter.detach().new_empty(saved.shape)))
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
