"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in colour.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import OWN, BenchmarkConfig, refuse
from protocl.data.npz import load_npz
from protocl.data.readers.torchvision_sets import is_archive, open_both, root_of
from protocl.data.samples import to_samples


def load_cifar10(config: BenchmarkConfig) -> ArrayData:
    """CIFAR-10, through torchvision or from an ``.npz`` archive at ``benchmark.path``."""
    return _load("CIFAR10", "cifar-10-batches-py", config)


def load_cifar100(config: BenchmarkConfig) -> ArrayData:
    """CIFAR-100 with its 100 fine classes, through torchvision or from an ``.npz`` archive."""
    return _load("CIFAR100", "cifar-100-python", config)


def _load(kind: str, folder: str, config: BenchmarkConfig) -> ArrayData:
    if is_archive(config):
        return load_npz(config)
    refuse(config, "split", "image_size", *OWN)
    train, test = open_both(kind, config, root_of(config) / folder)
    return ArrayData(*_tensors(train), *_tensors(test), list(train.classes), config.name)


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    return to_samples(part.data, "images"), torch.tensor(part.targets, dtype=torch.int64)
