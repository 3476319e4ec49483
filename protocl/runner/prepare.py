"""From a configuration to what a strategy learns from and on: stream and model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
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
from protocl.backbones.features import FeatureCache, require_fit, takes_raw
from protocl.config import ExperimentConfig, Setup
from protocl.data import ArrayData, ClassStream, class_stream
from protocl.errors import ConfigError
from protocl.memory import PrototypeMemory
from protocl.runner.context import RunContext
from protocl.runner.folders import kept_setting, write_config


@dataclass
class Prepared:
    """Data, stream and model that one run works on.

    Attributes:
        data: what the benchmark is made of.
        stream: which samples come when: images, or features computed beforehand.
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
    stream: ClassStream
    model: Classifier
    feature_dim: int
    n_classes: int
    class_names: list[str]
    data_hash: str
    backbone: Backbone
    sample_shape: tuple[int, ...]
    fingerprint: str

    @cached_property
    def benchmark(self) -> Any:
        """The stream as an Avalanche benchmark."""
        return self.stream.benchmark()

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
        if self.stream.unlabelled is not None:
            shared["unlabelled"] = self.stream.unlabelled
        return {prefix + name: value for name, value in shared.items()}

    def setup(
        self,
        run: RunContext[ExperimentConfig],
        plugins: Sequence[Any] = (),
        evaluator: Any = None,
    ) -> Setup:
        """What a strategy needs besides its own settings.

        Args:
            run: the run.
            plugins: Avalanche plugins of the runner.
            evaluator: Avalanche's, or None where there is no Avalanche.
        """
        return Setup(
            model=self.model,
            feature_dim=self.feature_dim,
            n_classes=self.n_classes,
            device=run.device,
            seed=run.config.seed,
            plugins=list(plugins),
            evaluator=evaluator,
            fingerprint=self.fingerprint,
            unlabelled=self.stream.unlabelled,
        )

    def encoded(self, run: RunContext[ExperimentConfig], backbone: Backbone) -> Prepared:
        """The same stream over the features of ``backbone``, which stays as it is from now on.

        The model is left as it was.
        """
        data = _encoded(run, self.data, backbone)
        return replace(
            self,
            data=data,
            stream=class_stream(run.config.benchmark, data, run.config.seed),
            feature_dim=backbone.feature_dim,
            backbone=backbone,
            fingerprint=fingerprint(backbone),
        )


def seed_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, as Avalanche's ``RNGManager`` does."""
    torch.default_generator.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


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
    if config.backbone.fold_batchnorm and config.strategy.trains_backbone:
        raise ConfigError(
            f"backbone.fold_batchnorm=true: strategy '{config.strategy.name}' trains its backbone, "
            "which needs its BatchNorm; leave it out"
        )
    data = run.load_data()
    build = build_backbone if config.strategy.trains_backbone else build_unscaled
    backbone = build(config.backbone, data.input_shape, config.seed)
    first, shape = backbone, data.input_shape
    require_fit(data, backbone)
    if not config.strategy.trains_backbone and not takes_raw(backbone):
        data = _encoded(run, data, backbone)
        if config.backbone.layer_scale == "std":
            data = _standardised(data, backbone, config)
        backbone = build_backbone(BackboneConfig(name="identity"), data.input_shape, config.seed)
    classifier = nn.Linear(backbone.feature_dim, data.n_classes)
    return Prepared(
        data=data,
        stream=class_stream(config.benchmark, data, config.seed),
        model=Classifier(backbone, classifier).to(run.device),
        feature_dim=backbone.feature_dim,
        n_classes=data.n_classes,
        class_names=data.class_names,
        data_hash=run.data_hash,
        backbone=first,
        sample_shape=shape,
        fingerprint=fingerprint(first),
    )


def _encoded(run: RunContext[ExperimentConfig], data: ArrayData, backbone: Backbone) -> ArrayData:
    """Features of all images, so many at a time as the configuration of the run says or will say.

    What is measured is written there, so that whoever resumes or repeats the run gets its bits.
    """
    config = run.config

    def choose_batch() -> int | None:
        asked = config.encoding_batch
        if asked is None:
            asked = "fixed" if config.strategy.needs_same_bits else "tuned"
        if asked == "tuned":
            config.encoding_batch = kept_setting(run.folder, "encoding_batch")
            if config.settled_batch is None:
                _settle_batch(run, data, backbone)
        return config.settled_batch

    return run.encode(data, backbone, choose_batch)


def _settle_batch(run: RunContext[ExperimentConfig], data: ArrayData, backbone: Backbone) -> None:
    """Measure the quickest number of images at a time, and write it to the configuration."""
    cache = FeatureCache(run.config.cache)
    found = cache.quickest_batch_size(data, backbone, run.device)
    if found is not None:
        run.config.encoding_batch = found
        write_config(run.config, run.folder)


def _standardised(data: ArrayData, backbone: Backbone, config: ExperimentConfig) -> ArrayData:
    """Features over their deviations in the first experience, which ``backbone`` keeps."""
    first = class_stream(config.benchmark, data, config.seed).train(0)
    memory = PrototypeMemory(backbone.feature_dim, "diagonal")
    memory.update(first.x[first.rows], first.y[first.rows])
    reader = standardise(backbone, memory).reader
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
