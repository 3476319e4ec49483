"""Whether a federation ended where all samples in one place would have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.backbones.features import extract
from protocl.errors import ConfigError
from protocl.federation.config import MethodConfig
from protocl.federation.methods.network import GradientConfig
from protocl.federation.methods.prototypes import HeadConfig
from protocl.federation.server.state import same_statistics
from protocl.memory import PrototypeMemory

if TYPE_CHECKING:
    from protocl.federation.runner.run import FederatedRun


@dataclass(frozen=True)
class OnePlace:
    """The merged memory beside that of all samples in one place.

    Attributes:
        identical: they hold the same bits.
        difference: largest difference of a sum or second moment, relative to the largest of these;
            None where classes or counts differ, as when a client was never asked.
        samples: in one place.
        merged_samples: that the merged memory counts.
        accuracy: of the head on the memory of one place, in [0, 1].
        federated_accuracy: of the head on the merged memory.
    """

    identical: bool
    difference: float | None
    samples: int
    merged_samples: int
    accuracy: float
    federated_accuracy: float

    def __str__(self) -> str:
        return (
            f"merged memory {self._agreement}; "
            f"accuracy {100 * self.federated_accuracy:.2f} %, in one place "
            f"{100 * self.accuracy:.2f} %"
        )

    @property
    def _agreement(self) -> str:
        if self.identical:
            return "equals that of one place bit for bit"
        if self.difference is not None:
            return f"equals that of one place to {self.difference:.1e}"
        counted = f"{self.merged_samples:,} of {self.samples:,} samples"
        return f"does not hold the counts of one place ({counted})"


def compare_with_one_place(run: FederatedRun) -> OnePlace:
    """Gather the samples of all clients in one memory and compare.

    Args:
        run: of a method that passed :func:`require_comparable`.
    """
    merged, head = run.method.memory, run.method.head  # type: ignore[attr-defined]
    assert merged is not None
    rows = torch.cat([torch.from_numpy(part) for parts in run.clients.parts for part in parts])
    rows = rows.sort().values
    memory = merged.empty_like()
    memory.update(_features(run, run.data.x_train[rows]), run.data.y_train[rows])
    x, y = _features(run, run.data.x_test), run.data.y_test
    accuracies = [float((head.fit(m).predict(x) == y).double().mean()) for m in (memory, merged)]
    return OnePlace(
        same_statistics(merged, memory),
        largest_difference(merged, memory),
        memory.total,
        merged.total,
        *accuracies,
    )


def require_comparable(method: MethodConfig) -> None:
    """Refuse methods whose features are not given before the run.

    Raises:
        ConfigError: the method trains what makes the features, or merges no memory.
    """
    if not isinstance(method, HeadConfig) or isinstance(method, GradientConfig):
        raise ConfigError(
            f"verify=true: method={method.name} merges no statistics of given features; use "
            "prototypes, robust or protected"
        )


def largest_difference(merged: PrototypeMemory, memory: PrototypeMemory) -> float | None:
    """See :class:`OnePlace`."""
    if not torch.equal(merged.classes, memory.classes):
        return None
    if not torch.equal(merged.counts, memory.counts):
        return None
    pairs = [(merged.sums, memory.sums)]
    if memory.level != "mean":
        pairs.append((merged.second_moment, memory.second_moment))
    return max(_relative(a, b) for a, b in pairs)


def _relative(a: Tensor, b: Tensor) -> float:
    largest = float(b.abs().max())
    return float((a - b).abs().max()) / largest if largest else float((a - b).abs().max())


def _features(run: FederatedRun, x: Tensor) -> Tensor:
    if not run.config.method.needs_samples:
        return x
    return extract(run.backbone, x, progress=False)
