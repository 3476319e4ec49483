"""Layers on one scale: each feature over its deviation, from additive statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.errors import ConfigError
from protocl.memory import PrototypeMemory

if TYPE_CHECKING:
    from protocl.backbones.base import Backbone

_CONSTANT = 1e-12
"""Share of a mean square below which a variance is rounding."""


def deviations(memory: PrototypeMemory) -> Tensor:
    """Standard deviation ``(D,)`` float32 of each feature over all samples of all classes.

    ``sqrt(sum x^2 / n - (sum x / n)^2)``; 1 for a feature that does not vary. It is a function of
    the sums alone, so that merged statistics give that of all samples together.

    Args:
        memory: of level ``diagonal``, ``shared`` or ``full``.

    Raises:
        ValueError: it is empty, of level ``mean``, or behind a feature map.
    """
    if not memory.total:
        raise ValueError("the memory is empty: deviations need at least one sample")
    if memory.feature_map.spec != "identity":
        raise ValueError(
            f"the memory holds features behind the map '{memory.feature_map.spec}': expected the "
            "backbone's own"
        )
    squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
    mean_square = squares / memory.total
    variance = mean_square - (memory.sums.sum(0) / memory.total) ** 2
    constant = variance <= _CONSTANT * mean_square
    return torch.where(constant, 1.0, variance.clamp(min=0).sqrt()).float()


def standardise(backbone: Backbone, memory: PrototypeMemory) -> Backbone:
    """Let a backbone that reads layers divide its features by their deviations in ``memory``.

    The deviations stay with the weights and are part of the fingerprint: memories under other
    ones do not merge. Means are not subtracted.

    Args:
        backbone: with layers, as yet unscaled; is changed in place.
        memory: of its features, such as those of a first experience.

    Returns:
        ``backbone``.

    Raises:
        ConfigError: it reads no layers, or they have a scale.
        ValueError: the memory has another width; or as :func:`deviations`.
    """
    reader = backbone.reader
    if reader is None or reader.scaling != "none":
        found = "no layers" if reader is None else f"layers of scale '{reader.scaling}'"
        raise ConfigError(
            f"standardise: backbone {backbone.architecture} reads {found}: expected "
            "read_layers(backbone, ...) of scale 'none'"
        )
    if memory.feature_dim != backbone.feature_dim:
        raise ValueError(
            f"the memory holds {memory.feature_dim} features: expected the {backbone.feature_dim} "
            "of the backbone"
        )
    reader.deviation = deviations(memory).to(memory.device)
    reader.scaling = "std"
    if backbone.origin is not None:
        settings = backbone.origin.settings | {"layer_scale": "std"}
        backbone.origin = replace(backbone.origin, settings=settings)
    return backbone


def standardised(backbone: Backbone, features: Tensor) -> Tensor:
    """Features ``(N, D)`` that the backbone gave, over their own deviations, which it keeps.

    Raises:
        ConfigError, ValueError: as :func:`standardise`.
    """
    labels = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    memory = PrototypeMemory(features.shape[1], "diagonal").to(features.device)
    reader = standardise(backbone, memory.update(features, labels)).reader
    assert reader is not None
    return reader.scaled(features)
