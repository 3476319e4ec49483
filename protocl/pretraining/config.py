"""The typed schema of every key of ``protocl pretrain``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from protocl.config.schema import RunConfig
from protocl.config.sections import Registered
from protocl.config.validation import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ranged,
)
from protocl.registry import Registry

OBJECTIVES = Registry("protocl.objectives", "objective")

Drawn = Iterator[tuple[Tensor, Tensor]]
"""Batches of one epoch: rows ``(B,)`` of the training images and their classes ``(B,)``."""


class Objective(Protocol):
    """What an embedding is trained for; it draws its batches and gives their loss."""

    def batches(self, labels: Tensor, generator: torch.Generator) -> Drawn:
        """The batches of an epoch over samples with class rows ``labels`` ``(N,)``."""

    def batches_per_epoch(self, labels: Tensor) -> int:
        """How many batches :meth:`batches` gives."""

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of features ``(B, D)`` with class rows ``(B,)``, in the order drawn."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Parameters trained besides the backbone's, left aside afterwards."""


@dataclass
class ObjectiveConfig(Registered):
    """Settings of an objective, which adds its own in a subclass.

    Registered under the entry-point group ``protocl.objectives``, a subclass is usable as
    ``objective=NAME`` and its fields as ``objective.FIELD=VALUE``.
    """

    registry = OBJECTIVES

    def build(self, feature_dim: int, n_classes: int) -> torch.nn.Module:
        """The :class:`Objective`, a module, for features of that width."""
        raise NotImplementedError(f"{type(self).__name__}.build is not defined")


@dataclass
class DistortionConfig:
    """Random distortion of training images (:class:`.Distortion`).

    Attributes:
        degrees: rotation by up to so many degrees either way.
        shear: horizontal shear by up to this tangent.
        scale: each side scaled by a factor within ``1 +- scale``.
        shift: translation by up to this share of half the image.
        elastic: standard deviation of a smooth displacement, as a share of half the image.
        flip: probability of a horizontal flip.
    """

    degrees: float = ranged(12.0, NOT_NEGATIVE)
    shear: float = ranged(0.2, NOT_NEGATIVE)
    scale: float = ranged(0.12, BELOW_1)
    shift: float = ranged(0.12, NOT_NEGATIVE)
    elastic: float = ranged(0.0, NOT_NEGATIVE)
    flip: float = ranged(0.0, SHARE)


@dataclass
class PretrainConfig(RunConfig):
    """One training of an embedding.

    Attributes:
        benchmark: the data; the base classes are the first ``benchmark.base_classes`` of its class
            order, all of them where that is not given.
        backbone: what is trained.
        objective: for what.
        distortion: of the images, drawn on the device.
        rotations: make the four orientations of a class four classes.
        whole: train on the test samples of the base classes as well, where the evaluation is on
            other classes.
        holdout: the last so many base classes are left out of training; nearest class means on
            them are evaluated after every epoch.
        epochs: passes over the images (in each orientation), or groups of episodes.
        lr: highest learning rate of AdamW's one-cycle schedule.
        warmup: share of the steps in which it rises.
        weight_decay: decoupled, of the backbone's weights.
    """

    name: str = "pretrain-${benchmark.name}-${objective.name}"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    distortion: DistortionConfig = field(default_factory=DistortionConfig)
    rotations: bool = True
    whole: bool = False
    holdout: int = 0
    epochs: int = ranged(10, AT_LEAST_1)
    lr: float = ranged(3e-3, POSITIVE)
    warmup: float = ranged(0.15, SHARE)
    weight_decay: float = ranged(1e-2, NOT_NEGATIVE)
