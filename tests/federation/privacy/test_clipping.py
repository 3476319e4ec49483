"""No feature keeps a client out of a private sum, and nobody else is told how many were clipped."""

from __future__ import annotations

import logging

import pytest
import torch

from protocl import PrototypeMemory
from protocl.federation.privacy.mechanism import GaussianMechanism, clipped_memory
from protocl.memory.feature_maps import FeatureMap, ReluProjection, Tukey, UnitNorm

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF, 6e4, 1e30])
def test_a_bad_feature_is_clipped_and_the_other_samples_stay(
    level: str, dtype: torch.dtype, bad: float
) -> None:
    features = torch.tensor([[0.25, 0.5], [bad, 0.5], [0.5, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 1, 0])
    mechanism = GaussianMechanism(1.0, 1.0)
    memory = clipped_memory(
        PrototypeMemory(2, level, exact=True),
        features,
        labels,
        mechanism,  # type: ignore[arg-type]
    )
    assert memory.counts.tolist() == [2, 1]
    assert memory.means[0].tolist() == [0.375, 0.25]
    expected = [0.0, 0.5] if bad != bad else [1.0 if bad > 0 else -1.0, 0.0]
    assert memory.means[1].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "feature_map", [Tukey(0.5), Tukey(0.0), Tukey(-1.0), UnitNorm(), ReluProjection(2, 8)]
)
def test_maps_take_what_is_left(feature_map: FeatureMap) -> None:
    features = torch.tensor([[0.25, 0.5], [NAN, INF], [-1.0, -INF], [1e30, 0.0], [0.0, 0.0]])
    template = PrototypeMemory(2, "shared", exact=True, feature_map=feature_map)
    memory = clipped_memory(template, features, torch.arange(5), GaussianMechanism(2.0, 1.0))
    assert memory.counts.tolist() == [1] * 5
    assert bool((memory.means.norm(dim=1) <= 2.0).all())
    assert torch.isfinite(memory.second_moment).all()


def test_what_is_within_stays_as_it_was() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) / 8
    template = PrototypeMemory(4, "shared", exact=True)
    labels = torch.arange(50) % 3
    clipped = clipped_memory(template, features, labels, GaussianMechanism(4.0, 1.0))
    toward_zero = torch.trunc(features.double() * 2**16) / 2**16
    rounded = template.empty_like().update(toward_zero, labels)
    difference = (clipped.means - rounded.means).abs().max()
    assert difference <= 2.0**-16


def test_only_the_log_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    features = torch.tensor([[NAN, 0.0], [3.0, 4.0], [0.1, 0.1], [INF, 1.0]])
    template = PrototypeMemory(2, exact=True)
    with caplog.at_level(logging.INFO):
        clipped_memory(template, features, torch.zeros(4).long(), GaussianMechanism(1.0, 1.0))
    assert "2 of 4 samples have features that are NaN, infinite or out of range" in caplog.text
    assert "3 of 4 samples were clipped" in caplog.text
    caplog.clear()
    clipped_memory(template, features[:0], torch.zeros(0).long(), GaussianMechanism(1.0, 1.0))
    assert "NaN" not in caplog.text
