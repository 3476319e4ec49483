"""Heads over the statistics of several maps: the authors' numbers, and that they merge."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protocl import PrototypeMemory
from protocl.errors import ConfigError
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean
from protocl.heads.joint.anacp import AnaCP, lifted_targets, projected, ridge, solved
from protocl.heads.joint.ensemble import Ensemble, KLDAEnsemble
from protocl.heads.joint.parts import member_memories
from protocl.memory.feature_maps import FeatureMap, UnitNorm, feature_map, unit
from protocl.memory.maps.gelu_projection import GeluProjection
from protocl.memory.maps.joint import Joint
from protocl.memory.maps.random_fourier import RandomFourier
from tests.golden.statistics_methods import inputs, values

F64 = torch.float64


def near(found: torch.Tensor, expected: list, tolerance: float = 1e-8) -> None:
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def of_clients(head, clients: int = 8, exact: bool = False) -> PrototypeMemory:
    data = inputs()
    parts = [
        head.new_memory(12, exact=exact).update(data["X"][chosen], data["y"][chosen])
        for chosen in (data["client"] % clients == c for c in range(clients))
    ]
    return sum(parts[::-1])


def test_kldas_ensemble_as_released():
    golden, given = values("klda_gamma0.02"), inputs()
    heads = []
    for shift in (0, 1):
        omega, b = given["omega"].roll(shift, 1), given["b"].roll(shift)
        map = RandomFourier(12, 40, 0.02, weight=torch.cat([omega, b[None]]))
        heads.append(LinearDiscriminant(0.0, map=map, dtype=F64))
    memory = of_clients(Ensemble(heads, dtype=F64))
    head = Ensemble(heads, sharpness=2 / memory.total, dtype=F64).fit(memory)
    found = 2 * head(given["T"][:6]).exp()
    near(found, golden["ensemble_of_two_mean_softmax_first_6_test"], 1e-7)


# -- AnaCP ------------------------------------------------------------------------------------


class TestAnaCP:
    golden = values("anacp_D30_two_heads")

    def covariance(self, memory: PrototypeMemory) -> torch.Tensor:
        """As the authors' code has it, which depends on the order of tasks (not offered)."""
        whole, seen = torch.zeros(12, 12, dtype=F64), 0
        data = inputs()
        for task in range(3):
            chosen = data["y"] // 2 == task
            part = PrototypeMemory(12, "shared", feature_map=UnitNorm())
            part.update(data["X"][chosen], data["y"][chosen])
            n, scatter = part.total, part.scatter()
            if task == 0:
                whole = scatter / n + 1e-4 * torch.eye(12, dtype=F64)
            else:
                whole = ((seen + n) * whole + scatter) / (seen + 2 * n)
            seen += n
        return whole

    def test_targets_projection_and_scores(self):
        data, random = inputs(), np.random.RandomState(11)
        last, *drawn = (
            GeluProjection(
                12, 30, weight=torch.from_numpy(random.standard_normal((30, 12)).T.copy())
            )
            for _ in range(3)
        )
        total = PrototypeMemory(12, "shared", feature_map=Joint([UnitNorm(), *drawn]))
        for client in range(8):
            chosen = data["client"] == client
            total += total.empty_like().update(data["X"][chosen], data["y"][chosen])
        base, *parts = member_memories(total)
        covariance = self.covariance(base)
        near(covariance.diagonal(), self.golden["shared_covariance_diagonal"])
        noise = np.random.RandomState(6)
        z = [torch.from_numpy(noise.standard_normal((20 * n, 12))) for n in (2, 4, 6)][-1]
        rows = torch.arange(6).repeat_interleave(20)
        x = base.means[rows] + z @ torch.linalg.cholesky(covariance).T
        for case in ("without_null_direction", "released"):
            golden = self.golden[case]
            shift = next(
                (torch.tensor(v, dtype=F64) for k, v in golden.items() if "null" in k), None
            )
            targets = lifted_targets(base.means, covariance, released=True, shift=shift)
            near(targets, golden["target_means"], 1e-6)
            thetas = [solved(p.second_moment, p.sums.T @ targets, 1.0) for p in parts]
            inner = last.projected(projected([m.projected(x) for m in drawn], thetas))
            weights = ridge(inner, torch.nn.functional.one_hot(rows).double(), 1.0)
            queries = projected([m(data["T"]) for m in drawn], thetas)
            scores = last.projected(queries) @ weights
            near(scores[:6], golden["scores_first_6_test"], 1e-6)
            assert scores.argmax(1).tolist() == golden["predictions"]

    def test_lifting_brings_means_apart_and_goes_back_by_default(self):
        means = torch.tensor([[1.0, 0.0, 0.0], [0.99, 0.1, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
        targets = lifted_targets(means, 0.01 * torch.eye(3, dtype=F64))
        before, after = (torch.pdist(unit(m)).min() for m in (means, targets))
        assert float(after) > 1.3 * float(before)


# -- laws -------------------------------------------------------------------------------------

HEADS = [
    lambda: KLDAEnsemble(2, dim=20, gamma=0.02, dtype=F64),
    lambda: AnaCP(2, dim=20, regularization=1.0, dtype=F64),
    lambda: Ensemble(
        [NearestMean(dtype=F64), LinearDiscriminant(map="unit", dtype=F64)], dtype=F64
    ),
]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("exact", [False, True])
def test_merged_statistics_give_the_head_of_one_place_and_files_load(make, exact, tmp_path):
    data, head = inputs(), make()
    memory = of_clients(head, 1, exact)
    merged = of_clients(make(), 8, exact)
    expected = head.fit(memory)(data["T"])
    found = make().fit(merged)(data["T"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, expected) or not exact
    assert float((head.predict(data["T"]) == data["t"]).double().mean()) > 0.7
    memory.save(tmp_path / "joint.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "joint.safetensors")
    assert torch.equal(make().fit(loaded)(data["T"]), expected)
    leaves, stays = (data["client"] == 3), (data["client"] != 3)
    merged -= merged.empty_like().update(data["X"][leaves], data["y"][leaves])
    never = merged.empty_like().update(data["X"][stays], data["y"][stays])
    found, expected = (make().fit(each)(data["T"]) for each in (merged, never))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, expected) or not exact


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
@pytest.mark.parametrize(
    "how", [{}, {"moments": "single"}, {"exact": True}, {"exact": True, "step": 2.0**-22}]
)
def test_members_hold_what_they_would_hold_alone(level, how):
    """Both halves of each number, in fixed point beyond one word as well."""
    data = inputs()
    joint = Joint([UnitNorm(), GeluProjection(12, 5, seed=3), FeatureMap()])
    kept = "mean" if level in ("mean", "diagonal") else "shared"
    whole = PrototypeMemory(12, level, feature_map=joint, **how)
    alone = [PrototypeMemory(12, kept, feature_map=map, **how) for map in joint.members]
    for rows in torch.arange(180).split(50):
        for memory in (whole, *alone):
            memory.update(data["X"][rows].double(), data["y"][rows])
    for memory in 8 * (whole, *alone):
        memory.merge(memory.copy())
    for part, own in zip(member_memories(whole), alone, strict=True):
        assert part.describe() == own.describe()
        equal = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
        if "exact" in how:
            equal = partial(torch.testing.assert_close, rtol=0, atol=0)
        equal(part.sums, own.sums)
        if kept == "shared":
            equal(part.second_moment, own.second_moment)
    assert feature_map(joint.spec).spec == joint.spec


def test_what_cannot_be_joined():
    for attempt, match in (
        (lambda: Joint([]), "expected one or more"),
        (lambda: Joint([Joint([FeatureMap()])]), "not joint"),
        (lambda: Ensemble([]), "expected one or more"),
        (lambda: Ensemble([LinearDiscriminant(streaming=True)]), "head with streaming= keeps what"),
        (lambda: Ensemble([Mahalanobis()]), "full"),
        (lambda: KLDAEnsemble(0), "members=0"),
        (lambda: AnaCP(per_class=0), "per_class=0"),
    ):
        with pytest.raises(ValueError, match=match):
            attempt()
    with pytest.raises(ConfigError, match="unknown feature map"):
        feature_map("joint:unit|nothing")


@pytest.mark.parametrize(("scale", "told"), [(1e-3, False), (1.0, False), (1e3, True)])
def test_a_kernel_that_no_two_samples_share_is_said(scale: float, told: bool):
    x, y = load_digits(return_X_y=True)
    features, labels = scale * torch.from_numpy(x[:600]).float(), torch.from_numpy(y[:600])
    head = KLDAEnsemble(2, dim=200, gamma=1e-4)
    memory = head.new_memory(64).update(features, labels)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        head.fit(memory)

    assert any("nothing tells classes apart" in str(each.message) for each in found) == told
