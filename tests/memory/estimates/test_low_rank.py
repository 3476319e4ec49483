"""Second moments of low rank: the numbers of the definition, and the bound of their error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.heads.joint.parts import member_memories
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.low_rank import LowRank, of_low_rank
from protocl.memory.estimates.variance import with_variance
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.maps.joint import Joint
from tests.golden.statistics_methods import inputs, values

F64 = torch.float64


def near(found: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-8)


def test_sums_of_four_clients_and_the_weights_behind_them():
    golden, data = values("own")["low_rank3_of_four_clients"], inputs()
    dropped, whole, rest = torch.zeros(12, 12, dtype=F64), torch.zeros(12, 12, dtype=F64), 0.0
    for client in range(4):
        x = data["X"][data["client"] % 4 == client]
        part = LowRank.of(x.T @ x, 3)
        dropped += part.factor.T @ part.factor
        whole += part.whole()
        rest += 12 * float(part.rest)
    assert rest == pytest.approx(golden["trace_left_out"], rel=1e-9)
    near(dropped.diagonal(), golden["gram_diagonal_dropped"])
    near(whole.diagonal(), golden["gram_diagonal_with_rest"])
    sums = torch.stack([data["X"][data["y"] == c].sum(0) for c in range(6)])
    weights = torch.linalg.solve(whole + torch.eye(12, dtype=F64), sums.T).T
    near(weights, golden["ridge_lambda1_weights_with_rest"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 4), st.integers(1, 8), st.floats(0.01, 100))
def test_the_error_of_sums_and_of_ridge_weights_is_bounded(seed, clients, rank, strength):
    """``0 <= G - G^ <= e I`` with ``e`` the sum of next eigenvalues; with the trace put back
    ``|W' - W| <= max(e, t) / lambda |W|``."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(7, 6, generator=generator, dtype=F64) for _ in range(clients)]
    grams = [x.T @ x for x in parts]
    total = torch.stack(grams).sum(0)
    kept = [LowRank.of(gram, rank) for gram in grams]
    gap = total - torch.stack([k.factor.T @ k.factor for k in kept]).sum(0)
    next_one = sum(float(torch.linalg.eigvalsh(g)[6 - rank - 1]) for g in grams) if rank < 6 else 0
    values = torch.linalg.eigvalsh(gap)
    slack = 1e-9 * float(total.trace())
    assert -slack <= float(values[0]) <= float(values[-1]) <= next_one + slack
    whole = torch.stack([k.whole() for k in kept]).sum(0)
    assert float(whole.trace()) == pytest.approx(float(total.trace()))
    right = torch.randn(6, 2, generator=generator, dtype=F64)
    eye = strength * torch.eye(6, dtype=F64)
    exact, found = (torch.linalg.solve(gram + eye, right) for gram in (total, whole))
    bound = max(next_one, sum(float(k.rest) for k in kept)) / strength
    assert float((found - exact).norm(dim=0).max()) <= (bound + 1e-6) * float(exact.norm())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 12))
def test_means_stay_exact_and_scatter_is_never_negative(seed, rank):
    data = inputs()
    chosen = torch.randint(180, (40,), generator=torch.Generator().manual_seed(seed))
    memory = PrototypeMemory(12, "shared").update(data["X"][chosen], data["y"][chosen])
    estimate, _ = of_low_rank(memory, rank)
    assert torch.equal(estimate.sums, memory.sums)
    assert estimate.estimated == f"scatter of rank {rank}"
    scatter = estimate.scatter()
    assert float(torch.linalg.eigvalsh(scatter)[0]) > -1e-9 * float(scatter.trace())
    torch.testing.assert_close(scatter.trace(), memory.scatter().trace())
    if rank == 12:
        torch.testing.assert_close(scatter, memory.scatter(), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="estimate"):
        memory + estimate


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(ValueError, match="rank=0"):
        LowRank.of(torch.eye(2), 0)


@pytest.mark.parametrize("moments", ["pairs", "single"])
def test_what_is_made_of_a_memory_keeps_how_it_holds_moments(moments):
    def of(map: FeatureMap | None) -> PrototypeMemory:
        memory = PrototypeMemory(3, "shared", feature_map=map, moments=moments)
        return memory.update(torch.randn(12, 3), torch.arange(12) % 3)

    memory = of(None)
    made = [
        *member_memories(of(Joint([FeatureMap(), FeatureMap()]))),
        with_variance(memory, 0.1),
        of_low_rank(memory, 2)[0],
        GroupMoments([memory, of(None)]).memory(),
    ]
    assert [each.moments for each in made] == [moments] * 5
