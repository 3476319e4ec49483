"""Samples per forward pass of a frozen backbone: by a rule, or measured once on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from protocl.backbones.base import Backbone

_MOST = 256
_FACTORS = (0.25, 0.5, 1, 2)
"""Of the rule, which are tried."""
_ROUNDS = 2
_WORTH = 32
"""The pass over all samples is at least so many times as long as what is measured."""
_GAIN = 0.9
"""Another size than the rule's takes at most this share of the rule's time."""


def default_batch_size(backbone: nn.Module, x: Tensor, device: torch.device) -> int:
    """Samples per forward pass by a rule, the same on every machine.

    On a CPU some 260,000 pixels at a time (5 images of 224x224, at most 256 images): there the
    activations stay near the processor, and EfficientNet-Lite0 encodes more than twice as many
    images a second as in batches of 32. Elsewhere 256.
    """
    if device.type != "cpu" or x.ndim != 4:
        return _MOST
    parts = (module for module in backbone.modules() if isinstance(module, Backbone))
    pixels = max((part.image_size or 0 for part in parts), default=0) ** 2
    pixels = pixels or x.shape[-2] * x.shape[-1]
    return max(1, min(_MOST, (1 << 18) // pixels))


def is_worth_measuring(n: int, x: Tensor, rule: int, device: torch.device) -> bool:
    """Whether ``n`` samples like ``x`` are so many that measuring costs at most 3 % of them.

    On other devices than a CPU, and for vectors, the rule stays.
    """
    if device.type != "cpu" or x.ndim != 4:
        return False
    sizes = _candidates(rule)
    return len(sizes) > 1 and n >= _WORTH * _ROUNDS * len(sizes) * max(sizes)


def quickest_batch_size(encode: Callable[[Tensor], object], x: Tensor, rule: int) -> int:
    """The batch size of least time a sample, of a quarter to twice the rule.

    Each encodes the same samples in two rounds, in turns, of which the quicker counts. The rule
    stays unless another size takes a tenth less time: close sizes are told apart by chance, and
    features depend on the size in their last bits.

    Args:
        encode: a forward pass over samples ``(B, ...)``.
        x: samples ``(N, ...)``, of which at most the first 256 are encoded.
        rule: what to compare with, at least 1.
    """
    sizes = _candidates(rule)
    sample = x[: max(sizes)]
    encode(sample[:rule])  # the first pass also sets the libraries up
    seconds = {size: float("inf") for size in sizes}
    for _ in range(_ROUNDS):
        for size in sizes:
            start = time.perf_counter()
            for batch in sample.split(size):
                encode(batch)
            seconds[size] = min(seconds[size], time.perf_counter() - start)
    best = min(sizes, key=seconds.__getitem__)
    return best if seconds[best] <= _GAIN * seconds[rule] else rule


def _candidates(rule: int) -> Sequence[int]:
    return sorted({min(_MOST, max(1, int(factor * rule))) for factor in _FACTORS})
