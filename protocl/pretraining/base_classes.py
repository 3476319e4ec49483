"""The classes that an embedding is trained on, and those held out to watch it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protocl.backbones.features import extract
from protocl.data.arrays import ArrayData
from protocl.data.streams import class_order
from protocl.errors import ConfigError
from protocl.heads.nearest_mean import NearestMean
from protocl.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class BaseClasses:
    """Images of the base classes.

    Attributes:
        images: ``(N, C, H, W)`` of the classes trained on.
        labels: ``(N,)`` rows in ``ids``.
        ids: class ids trained on.
        held_out_ids: class ids held out.
        held_out: data with the held-out classes' samples in both parts; None without any.
    """

    images: Tensor
    labels: Tensor
    ids: list[int]
    held_out_ids: list[int]
    held_out: tuple[Tensor, Tensor, Tensor, Tensor] | None


def base_classes(data: ArrayData, config: PretrainConfig) -> BaseClasses:
    """Cut the base classes out of ``data``: the first of the class order.

    Raises:
        ConfigError: samples are no images, or no base class is left to train on.
    """
    if data.x_train.ndim != 4:
        raise ConfigError(f"benchmark={config.benchmark.name}: pretraining takes images")
    order = class_order(config.benchmark, data.y_train, config.seed, data.arrival)
    chosen = order[: config.benchmark.base_classes or len(order)]
    if not 0 <= config.holdout < len(chosen):
        raise ConfigError(f"holdout={config.holdout}: expected 0 to {len(chosen) - 1} base classes")
    ids = sorted(chosen[: len(chosen) - config.holdout])
    held_out_ids = sorted(chosen[len(chosen) - config.holdout :])
    images, labels = _of(data.x_train, data.y_train, ids)
    if config.whole:
        more, more_labels = _of(data.x_test, data.y_test, ids)
        images, labels = torch.cat([images, more]), torch.cat([labels, more_labels])
    held_out = None
    if held_out_ids:
        held_out = (
            *_of(data.x_train, data.y_train, held_out_ids),
            *_of(data.x_test, data.y_test, held_out_ids),
        )
    return BaseClasses(images, labels, ids, held_out_ids, held_out)


def nearest_mean_accuracy(backbone: nn.Module, classes: BaseClasses) -> float | None:
    """Share of the held-out classes' test images nearest by cosine to their own class mean."""
    if classes.held_out is None:
        return None
    x_train, y_train, x_test, y_test = classes.held_out
    features = extract(backbone, torch.cat([x_train, x_test]), progress=False)
    support, asked = features[: len(x_train)], features[len(x_train) :]
    head = NearestMean(metric="cosine")
    head.fit(head.new_memory(features.shape[1]).update(support, y_train))
    return float((head.predict(asked) == y_test).float().mean())


def _of(x: Tensor, y: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Samples of the sorted classes ``ids``, and their rows in it."""
    wanted = torch.tensor(ids)
    mine = torch.isin(y, wanted)
    return x[mine], torch.searchsorted(wanted, y[mine])
