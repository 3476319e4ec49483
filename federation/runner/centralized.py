"""Whether a federation ended where all samples in one place would have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.backbones.features import extract
from protocl.errors import ConfigError
from protocl.federation.config import MethodConfig
from protocl.federation.methods.network import GradientConfig
from protocl.federation.methods.prototypes import HeadConfig
from protocl.federation.server.state import same_statistics
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.report.result import OnePlace

if TYPE_CHECKING:
    from protocl.federation.runner.run import FederatedRun


def compare_with_one_place(run: FederatedRun) -> OnePlace:
    """Gather the samples of all clients in one memory and compare.

    Args:
        run: of a method that passed :func:`require_comparable`.
    """
    merged, head = run.method.memory, run.method.head  # type: ignore[attr-defined]
    config = run.config.method
    assert merged is not None
    assert isinstance(config, HeadConfig)
    memory = _in_one_place(run, _exact_kind(head, merged))
    memory = config.beside(memory)
    x, y = _features(run, run.data.x_test), run.data.y_test
    accuracies = [float((head.fit(m).predict(x) == y).double().mean()) for m in (memory, merged)]
    alone, federated = accuracies
    return OnePlace(
        identical=same_statistics(merged, memory),
        difference=largest_difference(merged, memory),
        samples=memory.total,
        merged_samples=merged.total,
        accuracy=alone,
        federated_accuracy=federated,
        estimated_error=covariance_error(merged, memory) if merged.estimated else None,
    )


def _in_one_place(run: FederatedRun, memory: PrototypeMemory) -> PrototypeMemory:
    """All samples of the clients, added to an empty ``memory``."""
    parts = [torch.from_numpy(part) for parts in run.clients.parts for part in parts]
    rows = torch.cat(parts).sort().values
    features, labels = _features(run, run.data.x_train[rows]), run.data.y_train[rows]
    # In fixed point a batch has one word a number, which a client's part fits and all may not. In
    # floating point sums depend on the batches.
    places: list[Tensor | slice] = [torch.searchsorted(rows, part) for part in parts]
    batches = places if memory.exact else [slice(None)]
    for batch in batches:
        memory.update(features[batch], labels[batch])
    return memory


def _exact_kind(head: Head, merged: PrototypeMemory) -> PrototypeMemory:
    """An empty memory like ``merged``, but for a second moment that is summed."""
    if not merged.estimated:
        return merged.empty_like()
    return head.new_memory(
        merged.feature_dim, level=merged.level, fingerprint=merged.fingerprint
    ).to(merged.device)


def covariance_error(estimated: PrototypeMemory, exact: PrototypeMemory) -> float:
    """``|S - S'| / |S'|`` of the covariances within classes, both of level ``shared``."""
    scatter = exact.scatter()
    return float((estimated.scatter() - scatter).norm() / scatter.norm())


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
