"""The class scores, or the features, among what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_FIELDS = ("logits", "pooler_output", "output", "out")
"""Names under which libraries give class scores, or features, best first."""


Place = tuple[Any, ...]
"""Keys, positions and attributes that lead to a tensor in what a model returned."""


def main_output(output: Any, place: Place | None = None) -> Tensor | None:
    """The scores, or features, ``(N, ...)`` among what a model returned; None if there are none.

    A tensor is taken as it is. Of an object or a mapping (such as the outputs of ``transformers``)
    it is the field ``logits``, ``pooler_output``, ``output`` or ``out``, of these and of sequences
    otherwise the first tensor that has samples.

    Args:
        output: what the model returned.
        place: where the tensor is, if that is known.

    Raises:
        TypeError: the first tensor has no name that tells, and a matrix of another width is there.

    >>> import torch
    >>> main_output({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    found = tensors_of(output)
    if place in found:
        return found[place]
    first = next(iter(found), None)
    if first is None:
        return None
    if _is_unclear(found):
        shapes = ", ".join(f"{place}: {tuple(tensor.shape)}" for place, tensor in found.items())
        raise TypeError(
            f"the model returned several tensors ({shapes}), and nothing tells which of them are "
            "the scores: let it return a dictionary with those under 'logits', or only them"
        )
    return found[first]


def tensors_of(output: Any) -> dict[Place, Tensor]:
    """The tensors with samples in what a model returned, the likeliest scores first."""
    if isinstance(output, Tensor):
        return {(): output} if output.ndim else {}
    return {
        (key, *place): tensor
        for key, part in _parts(output).items()
        for place, tensor in tensors_of(part).items()
    }


def _parts(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        named = {field: output[field] for field in _FIELDS if field in output}
        return {**named, **output}
    named = {field: getattr(output, field) for field in _FIELDS if hasattr(output, field)}
    return {**named, **dict(enumerate(output))} if isinstance(output, list | tuple) else named


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors with samples in a tensor, a mapping or a sequence, in their order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    parts = value.values() if isinstance(value, Mapping) else value
    nested = isinstance(value, Mapping | list | tuple)
    return [found for part in parts for found in tensors_in(part)] if nested else []


def _is_unclear(found: dict[Place, Tensor]) -> bool:
    """Whether the first tensor has no name that tells, and a matrix of another width is there."""
    first = next(iter(found), ())
    if any(key in _FIELDS for key in first):
        return False
    matrices = [t for t in found.values() if t.ndim == 2 and t.is_floating_point()]
    return any(found[first].shape != matrix.shape for matrix in matrices)


def width_of(output: Any, samples: int, place: Place | None = None) -> int:
    """Columns of the scores that a model returned for so many samples; 0 if they cannot be told."""
    tensors = tensors_of(output)
    if place not in tensors and _is_unclear(tensors):
        return 0
    found = main_output(output, place)
    if found is None:
        return 0
    if found.ndim == 1 and samples == 1:  # of a model that squeezes
        return len(found)
    return found.shape[1] if found.ndim > 1 else 0


def scores_of(output: Any, place: Place | None = None) -> Tensor:
    """The scores ``(N, ...)`` among what a model returned; an error where there are none.

    Raises:
        TypeError: there are none, or they cannot be told from other tensors.
    """
    found = main_output(output, place)
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
