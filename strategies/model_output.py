"""The tensor that counts in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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


def _is_unclear(found: dict[Place, Tensor]) -> bool:
    """Whether the first tensor has no name that tells, and a matrix of another width is there."""
    first = next(iter(found), ())
    if any(key in _FIELDS for key in first):
        return False
    matrices = [t for t in found.values() if t.ndim == 2 and t.is_floating_point()]
    return any(found[first].shape != matrix.shape for matrix in matrices)


def width_of(output: Any, place: Place | None = None) -> int:
    """Columns of the scores that a model returned; 0 where they cannot be told."""
    tensors = tensors_of(output)
    if place not in tensors and _is_unclear(tensors):
        return 0
    found = main_output(output, place)
    return found.shape[1] if found is not None and found.ndim > 1 else 0
