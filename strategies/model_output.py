"""The tensor that counts in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_FIELDS = ("logits", "pooler_output", "output", "out")
"""Names under which libraries give class scores, or features, best first."""


def main_output(output: Any) -> Tensor | None:
    """The scores, or features, ``(N, ...)`` among what a model returned; None if there are none.

    A tensor is taken as it is. Of an object or a mapping (such as the outputs of ``transformers``)
    it is the field ``logits``, ``pooler_output``, ``output`` or ``out``, of these and of sequences
    otherwise the first tensor that has samples.

    >>> import torch
    >>> main_output({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output if output.ndim else None
    parts = _parts(output)
    return next((found for part in parts if (found := main_output(part)) is not None), None)


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        named = [output[field] for field in _FIELDS if field in output]
        return [*named, *output.values()]
    named = [getattr(output, field) for field in _FIELDS if hasattr(output, field)]
    return [*named, *output] if isinstance(output, list | tuple) else named


def width_of(output: Any) -> int:
    """Columns of the scores that a model returned; 0 where they cannot be told."""
    found = main_output(output)
    return found.shape[1] if found is not None and found.ndim > 1 else 0
