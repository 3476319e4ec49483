"""From a configuration to what a strategy learns from and on: stream and model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from protocl.backbones import (
    Backbone,
    BackboneConfig,
    Classifier,
    build_backbone,
    fingerprint,
    standardise,
)
from protocl.backbones.build import build_unscaled
from protocl.backbones.features import require_fit, takes_raw
from protocl.config import ExperimentConfig
from protocl.data import ArrayData, build_benchmark, class_order, experience_sizes, hold_out
from protocl.errors import ConfigError
from protocl.memory import PrototypeMemory
from protocl.runner.context import RunContext


@dataclass
class Prepared:
    """Data, stream and model that one run works on.

    Attributes:
        data: what the benchmark is made of.
        benchmark: Avalanche benchmark, over images or over features computed beforehand.
        model: classifier on the device of the run; its backbone is the identity where the
            features were computed beforehand.
        feature_dim: width ``D`` of the features.
        n_classes: number of class ids, the width of the model's logits.
        class_names: one name per class id.
        data_hash: SHA-256 of the data set as loaded.
        backbone: what samples go through first: where the features were computed beforehand the
            one that gave them, else that of the model.
        sample_shape: of one sample before it.
        fingerprint: of the backbone before the first experience, or of the one that gave the
            features.
    """

    data: ArrayData
    benchmark: Any
    model: Classifier
    feature_dim: int
    n_classes: int
    class_names: list[str]
    data_hash: str
    backbone: Backbone
    sample_shape: tuple[int, ...]
    fingerprint: str

    def shared_objects(self, prefix: str = "") -> dict[str, object]:
        """The objects, by name, that a checkpoint refers to instead of holding them."""
        shared: dict[str, object] = {
            "benchmark": self.benchmark,
            "train_stream": self.benchmark.train_stream,
            "test_stream": self.benchmark.test_stream,
        }
        for part in ("train", "test"):
            dataset = getattr(self.benchmark, f"original_{part}_dataset")
            shared[f"{part}_dataset"] = dataset
            for number, leaf in enumerate(_leaves(dataset._flat_data)):
                shared[f"{part}_data_{number}"] = leaf
        return {prefix + name: value for name, value in shared.items()}

    def encoded(self, run: RunContext[ExperimentConfig], backbone: Backbone) -> Prepared:
        """The same stream over the features of ``backbone``, which stays as it is from now on.

        The model is left as it was.
        """
        data = run.encode(self.data, backbone)
        return replace(
            self,
            data=data,
            benchmark=build_benchmark(run.config.benchmark, data, run.config.seed),
            feature_dim=backbone.feature_dim,
            backbone=backbone,
            fingerprint=fingerprint(backbone),
        )


def prepare(run: RunContext[ExperimentConfig]) -> Prepared:
    """Load the data, encode it once if the backbone stays frozen, and build stream and model.

    The initial weights come from the global random state, which the caller has seeded.
    """
    config = run.config
    if config.benchmark.augmentation != "none" and not config.strategy.trains_backbone:
        raise ConfigError(
            f"benchmark.augmentation={config.benchmark.augmentation}: strategy "
            f"'{config.strategy.name}' leaves its backbone frozen and sees each image once, as it "
            "is; leave the augmentation out, or train on the first experience"
        )
    data = run.load_data()
    build = build_backbone if config.strategy.trains_backbone else build_unscaled
    backbone = build(config.backbone, data.input_shape, config.seed)
    first, shape = backbone, data.input_shape
    require_fit(data, backbone)
    if not config.strategy.trains_backbone and not takes_raw(backbone):
        data = run.encode(data, backbone)
        if config.backbone.layer_scale == "std":
            data = _standardised(data, backbone, config)
        backbone = build_backbone(BackboneConfig(name="identity"), data.input_shape, config.seed)
    classifier = nn.Linear(backbone.feature_dim, data.n_classes)
    return Prepared(
        data=data,
        benchmark=build_benchmark(config.benchmark, data, config.seed),
        model=Classifier(backbone, classifier).to(run.device),
        feature_dim=backbone.feature_dim,
        n_classes=data.n_classes,
        class_names=data.class_names,
        data_hash=run.data_hash,
        backbone=first,
        sample_shape=shape,
        fingerprint=fingerprint(first),
    )


def _standardised(data: ArrayData, backbone: Backbone, config: ExperimentConfig) -> ArrayData:
    """Features over their deviations in the first experience, which ``backbone`` keeps."""
    seen = data
    if config.benchmark.validation:
        seen = hold_out(
            data, config.benchmark.validation, config.seed, config.benchmark.class_order
        )
    order = class_order(config.benchmark, seen.y_train, config.seed)
    first = order[: experience_sizes(config.benchmark, len(order))[0]]
    rows = torch.isin(seen.y_train, torch.tensor(first))
    memory = PrototypeMemory(backbone.feature_dim, "diagonal")
    reader = standardise(backbone, memory.update(seen.x_train[rows], seen.y_train[rows])).reader
    assert reader is not None
    return data.with_samples(reader.scaled(data.x_train), reader.scaled(data.x_test))


def _leaves(node: Any) -> Iterator[Any]:
    """The data sets at the bottom of Avalanche's tree of subsets and concatenations."""
    children = getattr(node, "_datasets", None)
    if children is None:
        yield node
        return
    for child in children:
        yield from _leaves(child)
