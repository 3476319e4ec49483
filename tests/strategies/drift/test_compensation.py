"""Drift compensation beside a prototype plugin, in strategies that move the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean
from protocl.strategies.drift.compensation import DriftCompensation, DriftEstimator
from protocl.strategies.il2a import IL2APlugin
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from tests.strategies.small import (
    assert_equal_weights,
    build_net,
    build_strategy,
    outputs_at_eval,
    train_on,
)

METHODS = ["sdc", "efm", "ldc", "dpcr", "adc"]
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "sdc": {"sigma": 1.0},
    "efm": {"method": "sdc", "metric": "efm", "sigma": 0.2},
    "ldc": {"ridge": 1e-3},
    "dpcr": {"ridge": 1e-3},
    "adc": {"neighbours": 20, "step": 0.5},
}


class Linear(nn.Module):
    """Features that drift linearly, as ``ldc`` assumes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.classifier = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def trained(benchmark: Any, method: str, model: nn.Module | None = None, **settings: Any) -> Any:
    """A naive strategy after all experiences, and the true means of the first one's classes."""
    level = "full" if method == "dpcr" else None
    prototypes = PrototypePlugin(**{"level": level, **settings})
    compensation = DriftCompensation(
        prototypes, DriftEstimator(**{"method": method, **SETTINGS[method]})
    )
    strategy = build_strategy("naive", [compensation, prototypes], model)
    train_on(strategy, benchmark.train_stream)
    return strategy, prototypes


def drift_of_old_means(benchmark: Any, strategy: Any, prototypes: PrototypePlugin) -> float:
    """Distance of the kept means of the first classes to their means under the final backbone."""
    assert prototypes.memory is not None
    true = prototypes.memory.empty_like()
    for _, features, labels, _ in features_of(strategy, benchmark.train_stream[0].dataset):
        true.update(features, labels)
    kept = prototypes.memory.at_level("mean").subset(true.classes)
    return float((kept.means - true.means).norm())


@pytest.mark.parametrize("method", METHODS)
def test_compensated_means_are_nearer_to_the_truth(benchmark: Any, method: str) -> None:
    torch.manual_seed(0)
    state = Linear().state_dict()
    errors = {}
    for name in ("none", method):
        model = Linear()
        model.load_state_dict(state)
        errors[name] = drift_of_old_means(benchmark, *trained(benchmark, name, model))
    assert errors[method] < 0.9 * errors["none"]


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_training_is_untouched(benchmark: Any, method: str) -> None:
    plain = build_strategy("naive", [])
    train_on(plain, benchmark.train_stream)
    state = torch.get_rng_state()
    strategy, prototypes = trained(benchmark, method)
    assert_equal_weights(strategy.model, plain.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_pre_hooks for module in strategy.model.modules())
    assert prototypes.memory is not None
    assert prototypes.memory.counts.sum() == 240


@pytest.mark.parametrize("head", [LinearDiscriminant(1e-2), NearestMean()])
@pytest.mark.parametrize("host", ["lwf", "replay"])
def test_heads_and_hosts(benchmark: Any, host: str, head: Any) -> None:
    prototypes = PrototypePlugin(head)
    plugins = [DriftCompensation(prototypes, "ldc", ridge=1e-3), prototypes]
    strategy = build_strategy(host, plugins)
    train_on(strategy, benchmark.train_stream)
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert logits.isfinite().all()


def test_a_class_that_comes_back_is_carried_over_before_it_is_added_to(benchmark: Any) -> None:
    prototypes = PrototypePlugin()
    compensation = DriftCompensation(prototypes, "ldc", ridge=1e-3)
    strategy = build_strategy("naive", [compensation, prototypes])
    train_on(strategy, [*benchmark.train_stream[:2], benchmark.train_stream[0]])
    assert prototypes.memory is not None
    first = benchmark.train_stream[0]
    counts = dict(
        zip(prototypes.memory.classes.tolist(), prototypes.memory.counts.tolist(), strict=True)
    )
    assert sum(counts[c] for c in first.classes_in_this_experience) == 2 * len(first.dataset)


@pytest.mark.parametrize("method", ["sdc", "ldc", "dpcr", "adc"])
@pytest.mark.parametrize("sums", [{"head": Mahalanobis()}, {"exact": True}])
def test_sums_of_other_things_than_features_are_refused_before_training(
    method: Any, sums: dict[str, Any]
) -> None:
    prototypes = PrototypePlugin(level="full", **sums)
    with pytest.raises(ValueError, match=r"carries features over as they are.* another head"):
        DriftCompensation(prototypes, method)
    DriftCompensation(prototypes, "none")


def test_wrong_use_is_refused(benchmark: Any) -> None:
    prototypes = PrototypePlugin()
    compensation = DriftCompensation(prototypes, "sdc")
    strategy = build_strategy("naive", [prototypes, compensation])
    with pytest.raises(ValueError, match="must come before its PrototypePlugin"):
        train_on(strategy, benchmark.train_stream)
    with pytest.raises(ValueError, match="collect='training'"):
        DriftCompensation(PrototypePlugin(collect="training"), "sdc")
    with pytest.raises(ValueError, match="level 'mean' does not tell: keep level='full'"):
        DriftCompensation(prototypes, "dpcr")
    with pytest.raises(ValueError, match="metric='efm' reads the model's classification layer"):
        IL2APlugin(drift=DriftEstimator("sdc", metric="efm"))
    with pytest.raises(ValueError, match="method='magic': expected 'none', 'sdc'"):
        DriftCompensation(prototypes, "magic")  # type: ignore[arg-type]


def test_nets_with_batch_norm_and_dropout(benchmark: Any) -> None:
    _, prototypes = trained(benchmark, "adc", build_net(), level="full")
    assert prototypes.memory is not None
    assert prototypes.memory.scatter().isfinite().all()
