"""Streams as users may bring them, and models as they may write them, for hypothesis."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_classification_dataset
from avalanche.training import Naive
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

CLASSES, SHAPE = 4, (1, 8, 8)

Pair = namedtuple("Pair", ["image", "label"])
Weighted = namedtuple("Weighted", ["image", "label", "weight"])

CONTAINERS: dict[str, Callable[[Any, Any, int], Any]] = {
    "pair": lambda x, y, index: (x, y),
    "list": lambda x, y, index: [x, y],
    "index": lambda x, y, index: (x, y, index),
    "extra tensors": lambda x, y, index: (x, y, torch.zeros(3), 0.5),
    "namedtuple": lambda x, y, index: Pair(x, y),
    "weighted": lambda x, y, index: Weighted(x, y, 0.5),
}
LABELS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "tensor": torch.tensor,
    "int32 tensor": lambda y: torch.tensor(y, dtype=torch.int32),
    "numpy": np.int64,
    "numpy uint8": np.uint8,
    "array": np.array,
}
DTYPES: dict[str, tuple[torch.dtype, float]] = {
    "uint8": (torch.uint8, 255.0),
    "int64": (torch.int64, 255.0),
    "float16": (torch.float16, 1.0),
    "float32": (torch.float32, 1.0),
    "float64": (torch.float64, 1.0),
}


@dataclass
class ModelOutput:
    """As ``transformers`` returns it."""

    logits: Tensor
    loss: Tensor | None = None


Scored = namedtuple("Scored", ["loss", "logits"])

WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda out: out,
    "tuple": lambda out: (out, None),
    "list": lambda out: [out],
    "dict": lambda out: {"loss": None, "logits": out},
    "namedtuple": lambda out: Scored(None, out),
    "dataclass": ModelOutput,
}

streams = st.lists(
    st.lists(st.sampled_from(range(CLASSES)), min_size=1, max_size=9), min_size=1, max_size=3
)
"""Labels of each experience: classes come in any order and come back, down to one sample."""


@dataclass(frozen=True)
class Form:
    """What a data set gives with a sample.

    Attributes:
        container: key of :data:`CONTAINERS`, or ``"dictionary"``.
        label: key of :data:`LABELS`.
        dtype: key of :data:`DTYPES`.
        contiguous: whether each image is.
    """

    container: str = "pair"
    label: str = "int"
    dtype: str = "float32"
    contiguous: bool = True


forms = st.builds(
    Form,
    st.sampled_from(sorted(CONTAINERS)),
    st.sampled_from(sorted(LABELS)),
    st.sampled_from(sorted(DTYPES)),
    st.booleans(),
)


def images(labels: list[int], seed: int, form: Form = Form()) -> Tensor:
    """``(N, 1, 8, 8)``: the pattern of each class, in noise."""
    dtype, scale = DTYPES[form.dtype]
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(9))
    noise = torch.rand(len(labels), *SHAPE, generator=generator)
    x = ((0.7 * patterns[labels] + 0.3 * noise) * scale).to(dtype)
    return x if form.contiguous else x.mT.contiguous().mT


class Samples(Dataset[Any]):
    """A data set of a user's own."""

    def __init__(self, x: Tensor, labels: list[int], form: Form) -> None:
        self.x, self.form = x, form
        self.targets = [LABELS[form.label](label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        x, y = self.x[index], self.targets[index]
        if self.form.container == "dictionary":
            return {"image": x, "label": y}
        return CONTAINERS[self.form.container](x, y, index)


def benchmark_of(stream: list[list[int]], form: Form, tasked: bool = False) -> Any:
    """A benchmark that is evaluated on what it is trained on.

    Args:
        stream: labels of each experience.
        form: what its data sets give.
        tasked: each sample carries the task label 0.
    """
    make: Any = as_classification_dataset
    if tasked:
        make = _make_taskaware_classification_dataset
    parts = [Samples(images(y, t, form), y, form) for t, y in enumerate(stream)]
    sets = [make(part, **({"task_labels": 0} if tasked else {})) for part in parts]
    return benchmark_from_datasets(train=sets, test=sets)


class Model(nn.Module):
    """Takes images of any type; features are the same in both modes."""

    def __init__(self, wrap: str = "tensor", scale: float = 1.0) -> None:
        super().__init__()
        self.wrap, self.scale = wrap, scale
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return WRAPS[self.wrap](self.classifier(self.embedded(x)))

    def embedded(self, x: Tensor) -> Tensor:
        """Features ``(N, 8)``."""
        out: Tensor = self.features(x.float() / self.scale)
        return out


class ByName(Naive):
    """A strategy that reads mini-batches which are dictionaries."""

    @property
    def mb_x(self) -> Any:
        return self.mbatch["image"]

    @property
    def mb_y(self) -> Any:
        return self.mbatch["label"]

    def forward(self) -> Any:
        return self.model(self.mb_x)

    def _unpack_minibatch(self) -> None:
        self.mbatch = {name: part.to(self.device) for name, part in self.mbatch.items()}
