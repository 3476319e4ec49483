"""What both sides of ``protocl bench script`` work on, each in the form that it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocl.backbones import BackboneConfig, build_backbone
from protocl.backbones.features import FeatureCache
from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, load_data
from protocl.errors import ProtoclError

logger = logging.getLogger(__name__)

_BACKBONE = "efficientnet_lite0"
_SIZE = 96
_EXPERIENCES = 10
_TEST_IMAGES = 100  # of each class, all that there are


@dataclass(frozen=True)
class Source:
    """Samples for both sides.

    Attributes:
        described: in the table.
        settings: of ``protocl run``.
        arguments: of the script, after the method.
        cached: whether nothing is encoded.
    """

    described: str
    settings: Mapping[str, Any]
    arguments: tuple[str, ...]
    cached: bool = True

    def rows(self, methods: Sequence[str]) -> Sequence[str]:
        """The methods that are measured on it: one where encoding takes most of the time."""
        return methods if self.cached else methods[:1]


def digits() -> Source:
    """Scikit-learn's digits, pixels as features."""
    return Source("digits", {"benchmark": "digits", "backbone": "identity"}, ("digits",))


def from_cifar100(path: str, per_class: int, folder: Path) -> Iterator[Source]:
    """Part of CIFAR-100 as images, then as features; nothing but a warning where it is absent.

    Args:
        path: an ``.npz`` archive, or the folder of torchvision's download.
        per_class: training images a class; a third as many test images, at most all.
        folder: receives the samples, in a folder of each side's own.
    """
    try:
        backbone = build_backbone(BackboneConfig(_BACKBONE, image_size=_SIZE), (3, 32, 32), 1)
        data = _images(path, per_class)
    except ProtoclError as error:
        logger.warning("script: rows on CIFAR-100 are left out: %s", error)
        return
    images, features = folder / "images.npz", folder / "features.npz"
    _save(images, data, data.x_train.permute(0, 2, 3, 1), data.x_test.permute(0, 2, 3, 1))
    settings = {
        "benchmark": "npz", "benchmark.path": images, "benchmark.n_experiences": _EXPERIENCES,
        "backbone": _BACKBONE, "backbone.image_size": _SIZE,
    }  # fmt: skip
    described = f"{len(data.x_train) + len(data.x_test)} images of CIFAR-100"
    more = ("--experiences", str(_EXPERIENCES))
    yield Source(
        f"{described}, nothing cached", settings,
        (str(images), "--size", str(_SIZE), *more), cached=False,
    )  # fmt: skip
    # The command reads the same archive, and finds the features of its images.
    encoded = FeatureCache(folder / "cache").encode(
        load_data(BenchmarkConfig("npz", path=str(images))), backbone
    )
    _save(features, encoded, encoded.x_train, encoded.x_test)
    yield Source(f"features of {described}", settings, (str(features), *more))


def _images(path: str, per_class: int) -> ArrayData:
    if Path(path).suffix == ".npz":
        config = BenchmarkConfig("npz", path=path)
    else:
        config = BenchmarkConfig("cifar100", root=path)
    config.train_per_class = per_class
    config.test_per_class = min(-(-per_class // 3), _TEST_IMAGES)
    return load_data(config)


def _save(file: Path, data: ArrayData, x_train: Any, x_test: Any) -> None:
    np.savez(file, x_train=x_train, y_train=data.y_train, x_test=x_test, y_test=data.y_test)
