"""Robust merging: its parts against plain definitions, and attacks that break plain sums."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import trim_mean
from torch import Tensor

from protocl import PrototypeMemory
from protocl.checks import assert_same, sample_batch
from protocl.errors import FingerprintError
from protocl.federation.bench import robust_study
from protocl.federation.robust.attacks import ATTACKS
from protocl.federation.robust.client_means import (
    consistency,
    geometric_median,
    near_copies,
    trimmed_mean,
    weighted_mean,
)
from protocl.federation.robust.rules import ConsistencyScreen, RobustMerge
from protocl.federation.robust.side_by_side import SideBySide
from protocl.federation.wire.messages import Contribution


def points(clients: int = 7, classes: int = 3, width: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, classes, width, generator=generator, dtype=torch.float64)


def client(seed: int, samples: int = 60, **kind: object) -> PrototypeMemory:
    """Clients of one population: the same centres, other samples."""
    features, labels = sample_batch(6, samples=600)
    chosen = torch.randperm(600, generator=torch.Generator().manual_seed(seed))[:samples]
    return PrototypeMemory(6, **kind).update(features[chosen], labels[chosen])  # type: ignore[arg-type]


# -- centres --------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [0.0, 1 / 7, 3 / 7])
def test_trimmed_mean_is_scipys(trim: float) -> None:
    means = points()
    found = trimmed_mean(means, torch.ones(7, 3, dtype=torch.float64), trim)
    # A hair more, for the share that scipy turns into a whole number of points.
    np.testing.assert_allclose(found, trim_mean(means.numpy(), trim + 1e-9, axis=0), atol=1e-12)


def test_trimmed_mean_with_weights_is_that_of_repeated_points() -> None:
    means, repeats = points(3), [1, 3, 4]
    weights = torch.tensor(repeats, dtype=torch.float64)[:, None].expand(3, 3)
    repeated = means.repeat_interleave(torch.tensor(repeats), dim=0)
    ones = torch.ones(8, 3, dtype=torch.float64)
    for centre in (weighted_mean, lambda m, w: trimmed_mean(m, w, 0.25), geometric_median):
        torch.testing.assert_close(
            centre(means, weights), centre(repeated, ones), rtol=0, atol=1e-6
        )


def test_geometric_median_minimises_the_sum_of_distances() -> None:
    means = points(clients=6)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    found = geometric_median(means, weights[:, None].expand(6, 3))
    for c in range(3):
        own = means[:, c].numpy()

        def cost(x: np.ndarray, own: np.ndarray = own) -> float:
            return float(weights.numpy() @ np.linalg.norm(own - x, axis=1))

        best = minimize(
            cost,
            own.mean(0),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
        )
        assert cost(found[c].numpy()) <= best.fun + 1e-6


def test_geometric_median_of_points_that_coincide() -> None:
    means = torch.ones(5, 2, 3, dtype=torch.float64)
    means[4] = 100.0
    found = geometric_median(means, torch.ones(5, 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.ones(2, 3, dtype=torch.float64), atol=1e-3, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.0, 1e9), st.integers(1, 4))
def test_minority_cannot_move_the_centres_far(seed: int, far: float, liars: int) -> None:
    """Four liars of eleven, wherever they are: the centre stays among the honest."""
    means = points(11, 2, 5, seed)
    radius = means[liars:].norm(dim=2).max()
    means[:liars] = far * torch.nn.functional.normalize(means[:liars], dim=2)
    weights = torch.ones(11, 2, dtype=torch.float64)
    # Lopuhaä and Rousseeuw 1991: within 2 r (1 - a) / (1 - 2 a) for a share a of liars.
    bound = 2 * radius * (1 - liars / 11) / (1 - 2 * liars / 11)
    assert geometric_median(means, weights).norm(dim=1).max() <= bound
    assert trimmed_mean(means, weights, 0.4).abs().max() <= radius


# -- merging --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"exact": True}, {"fingerprint": "f"}])
def test_mean_without_defences_is_the_exact_sum(kind: dict[str, object]) -> None:
    memories = [client(seed, **kind) for seed in range(4)]
    memories[0].forget([41])
    merged, total = RobustMerge("mean")(memories), robust_study.exact_sum(memories)
    if "exact" in kind:
        assert (merged.get_buffer("sum") - total.get_buffer("sum")).abs().max() <= 1
    else:
        assert_same(merged, total, "mean")
    assert merged.counts.tolist() == total.counts.tolist()
    assert merged.fingerprint == total.fingerprint


@pytest.mark.parametrize("level", ["diagonal", "shared", "full"])
def test_other_levels_give_a_memory_of_means(level: str) -> None:
    merged = RobustMerge()([client(seed, level=level) for seed in range(3)])
    assert_same(merged, RobustMerge()([client(seed) for seed in range(3)]), level)


def test_bounds_are_medians() -> None:
    """Of five clients one has twice the norm and ten times the count; bounds cut both."""
    memories = [
        PrototypeMemory(2).update(torch.eye(2)[[0] * 4], torch.zeros(4).long()) for _ in range(5)
    ]
    memories[0] = PrototypeMemory(2).update(2 * torch.eye(2)[[1] * 40], torch.zeros(40).long())
    merged = RobustMerge("mean", max_norm=1.5, max_count=2.0)(memories)
    assert merged.counts.tolist() == [4 * 4 + 8]
    torch.testing.assert_close(merged.sums, torch.tensor([[16.0, 8 * 1.5]]).double())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="centre='median'"):
        RobustMerge("median")  # type: ignore[arg-type]
    for name, value in (
        ("trim", 0.5),
        ("min_consistency", 2),
        ("max_norm", 0.5),
        ("max_count", -1),
    ):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            RobustMerge(**{name: value})
    with pytest.raises(ValueError, match="minimum=-1"):
        ConsistencyScreen(-1)
    with pytest.raises(ValueError, match="no memories"):
        RobustMerge()([])
    with pytest.raises(FingerprintError):
        RobustMerge()([client(0, fingerprint="a"), client(1, fingerprint="b")])
    with pytest.raises(ValueError, match="floating point"):
        ATTACKS["label flip"]([client(0, exact=True)], torch.Generator())


# -- telling liars --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", ["label flip", "scaled vectors", "random vectors", "inflated counts"]
)
def test_liars_score_low(attack: str) -> None:
    honest = [client(seed) for seed in range(10)]
    lies = ATTACKS[attack](honest[:3], torch.Generator().manual_seed(0))
    clients = SideBySide([*lies, *honest[3:]])
    scores = consistency(clients, torch.ones(len(clients), dtype=torch.float64))
    assert scores[:3].max() < 0.4 < 0.6 < scores[3:].min()


def test_sole_holders_of_a_class_are_not_judged() -> None:
    alone = PrototypeMemory(6).update(torch.full((5, 6), 900.0), torch.full((5,), 77))
    clients = SideBySide([alone, *(client(seed) for seed in range(4))])
    assert float(consistency(clients, torch.ones(len(clients), dtype=torch.float64))[0]) == 1.0


def test_sybils_are_found_and_honest_clients_are_not() -> None:
    honest = [client(seed) for seed in range(12)]
    copies = ATTACKS["Sybils"](honest[:5], torch.Generator().manual_seed(0))
    assert near_copies(SideBySide([*copies, *honest[5:]]), 0.25).tolist() == [5] * 5 + [1] * 7
    # Outliers do not make the honest look alike.
    lies = ATTACKS["random vectors"](honest[:4], torch.Generator().manual_seed(0))
    assert near_copies(SideBySide([*lies, *honest[4:]]), 0.25).tolist() == [1] * 12
    assert near_copies(SideBySide(honest[:1]), 0.25).tolist() == [1]


def test_screen_rejects_liars_with_a_reason() -> None:
    honest = [client(seed, level="shared") for seed in range(6)]
    flipped = honest[0].copy()
    flipped.sum = flipped.get_buffer("sum").roll(1, 0)
    sent = [Contribution(memory, "epoch", 1) for memory in (flipped, *honest[1:])]
    verdicts = ConsistencyScreen(0.5)(sent, honest[0].empty_like())
    assert verdicts[1:] == [None] * 5
    assert verdicts[0] is not None
    assert verdicts[0].startswith("consistency 0.")
    assert verdicts[0].endswith("below 0.5")


# -- attacks and defences on digits ---------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    rows = robust_study.study(seeds=[1])
    return {r.defence: {a: mean(values) for a, values in r.accuracy.items()} for r in rows}


def test_every_attack_breaks_the_exact_sum(table: dict[str, dict[str, float]]) -> None:
    exact = table["none (exact sum)"]
    assert exact["none"] > 0.9
    assert all(exact[attack] < 0.82 for attack in ATTACKS)


@pytest.mark.parametrize(
    ("defence", "attacks"),
    [
        ("trimmed mean", ["label flip", "scaled vectors", "random vectors", "inflated counts"]),
        ("geometric median", ["label flip", "scaled vectors", "random vectors", "inflated counts"]),
        ("consistency, count cap", ["scaled vectors", "random vectors", "inflated counts"]),
        ("all", list(ATTACKS)),
    ],
)
def test_defences_restore_accuracy(
    table: dict[str, dict[str, float]], defence: str, attacks: list[str]
) -> None:
    assert all(table[defence][attack] > 0.87 for attack in attacks)


def test_defences_cost_little_without_attack(table: dict[str, dict[str, float]]) -> None:
    assert all(row["none"] > 0.89 for row in table.values())


def test_command_prints_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["robust_study", "--seeds", "2"])
    monkeypatch.setenv("COLUMNS", "200")
    robust_study._main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*ATTACKS, *robust_study.DEFENCES))
