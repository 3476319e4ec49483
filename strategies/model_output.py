"""The tensor that counts in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors with samples in a tensor, a mapping or a sequence, in their order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    parts = value.values() if isinstance(value, Mapping) else value
    nested = isinstance(value, Mapping | list | tuple)
    return [found for part in parts for found in tensors_in(part)] if nested else []


def width_of(output: Any, samples: int) -> int:
    """Columns of the scores that a model returned for so many samples; 0 if they cannot be told."""
    found = main_output(output)
    if found is None:
        return 0
    if found.ndim == 1 and samples == 1:  # of a model that squeezes
        return len(found)
    return found.shape[1] if found.ndim > 1 else 0


def scores_of(output: Any) -> Tensor:
    """The same where there must be one.

    Raises:
        TypeError: there is none.
    """
    found = main_output(output)
    if found is None:
        raise TypeError(
            f"the model returned a {type(output).__name__}: expected scores of the classes, or an "
            "object that holds them as its logits"
        )
    return found


class ScoresCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of what a model returns, whatever holds it, with integer labels of any type."""

    def forward(self, output: Any, labels: Tensor) -> Tensor:
        """Scalar loss of an output and labels ``(N,)``."""
        return super().forward(scores_of(output), labels.to(torch.int64))
