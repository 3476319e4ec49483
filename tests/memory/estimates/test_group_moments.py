"""Covariance from group means: the authors' numbers, and what is claimed of the estimate."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import PrecisionWarning
from protocl.heads import LinearDiscriminant, Ridge
from protocl.heads.regression.equations import Equations, Form
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.estimates.variance import with_variance
from protocl.memory.feature_maps import FeatureMap, ReluProjection
from tests.golden.statistics_methods import inputs, values

F64 = torch.float64


def parts(blocks: int = 1, map: FeatureMap | None = None, clients: int = 8) -> list:
    """One memory of each block of each client's rows."""
    data, found = inputs(), []
    for client in range(clients):
        rows = (data["client"] % clients == client).nonzero()[:, 0].numpy()
        size = len(rows) // blocks
        for block in np.split(rows, range(size, blocks * size, size)):
            memory = PrototypeMemory(12, feature_map=map)
            found.append(memory.update(data["X"][block], data["y"][block]))
    return found


def near(found: torch.Tensor, expected: list, rtol: float = 1e-8) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=rtol, atol=1e-8)


class TestFedCOF:
    golden = values("fedncm_fed3r_fedcof")

    @pytest.mark.parametrize("gamma", [0.1, 1.0])
    def test_weights(self, gamma):
        memory = with_variance(GroupMoments(parts()).memory(), gamma)
        head = Ridge(regularization=1e-12, scatter="within", normalize=True, dtype=F64)
        near(head.fit(memory)._weights.T, self.golden[f"fedcof_gamma{gamma}_weights"])

    def test_matrix_and_holders(self):
        moments = GroupMoments(parts())
        memory = with_variance(moments.memory(), 1.0)
        found = Equations(memory, Form("within")).matrix().diagonal()
        near(found, self.golden["fedcof_gamma1.0_gram_estimate_diagonal"])
        assert moments.group_counts.tolist() == self.golden["holders_of_each_class"]


@pytest.mark.parametrize("blocks", [1, 2])
def test_stsa_es_gram_matrix_as_released(blocks):
    golden = values("stsa_e")[f"dummy{blocks}"]
    map = ReluProjection(12, 40, weight=inputs()["W"])
    second = GroupMoments(parts(blocks, map)).memory("released").second_moment
    near(second.trace(), golden["gram_estimate_trace"])
    near(second.diagonal()[:8], golden["gram_estimate_diagonal_first_8"])
    near(torch.linalg.eigvalsh(second)[0], golden["least_eigenvalue"])
    exact = PrototypeMemory(12, "shared", feature_map=map).update(inputs()["X"], inputs()["y"])
    near(exact.second_moment.trace(), values("stsa_e")["exact_gram_trace"])


def test_the_pooled_covariance():
    golden, moments = values("own")["pooled"], GroupMoments(parts())
    assert moments.degrees_of_freedom == golden["degrees_of_freedom"]
    near(moments.moment().diagonal(), golden["group_mean_moment_diagonal"])
    memory = moments.memory("groups")
    covariance = memory.scatter() / (memory.total - len(memory))
    near(covariance.diagonal(), golden["within_covariance_diagonal"])
    exact = LinearDiscriminant().new_memory(12).update(inputs()["X"], inputs()["y"])
    covariance = exact.scatter() / (exact.total - len(exact))
    near(covariance.diagonal(), golden["exact_within_covariance_diagonal"])


# -- laws ------------------------------------------------------------------------------------


def drawn(seed: int, groups: int, exact: bool = True, samples: int = 60) -> list:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    x = labels[:, None] * 2.0 + torch.randn(samples, 4, generator=generator)
    owner = torch.randint(groups, (samples,), generator=generator)
    return [
        PrototypeMemory(4, exact=exact).update(x[owner == g], labels[owner == g])
        for g in range(groups)
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**20), st.integers(3, 6), st.booleans(), st.sampled_from(["samples", "groups"])
)
def test_order_does_not_matter_and_a_group_that_is_gone_was_never_there(
    seed, groups, exact, weights
):
    sent = drawn(seed, groups, exact)
    left = GroupMoments(sent) - GroupMoments(sent[1:2])
    never = GroupMoments(sent[:1] + sent[2:])
    first, second = left.memory(weights), never.memory(weights)
    assert torch.equal(first.second_moment, second.second_moment)  # to the last bit
    assert torch.equal(first.sums, second.sums)
    again = (GroupMoments(sent[2:]) + GroupMoments(sent[:1])).memory(weights)
    torch.testing.assert_close(again.second_moment, second.second_moment, rtol=1e-10, atol=1e-9)


def test_the_estimate_is_right_in_the_mean_and_its_error_falls_as_stated():
    """``E |S - Sigma|^2 = (tr(Sigma)^2 + tr(Sigma^2)) / nu`` for Gaussian features."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=F64)
    sigma = root @ root.T
    labels, owner = torch.arange(2).repeat(30), torch.arange(60) // 10
    total, errors = torch.zeros_like(sigma), []
    for _ in range(100):
        x = torch.randn(60, 4, generator=generator, dtype=F64) @ root.T
        moments = GroupMoments([
            PrototypeMemory(4).update(x[owner == g], labels[owner == g]) for g in range(6)
        ])  # fmt: skip
        memory = moments.memory("groups")
        estimate = memory.scatter() / (memory.total - len(memory))
        total += estimate / 100
        errors.append(float((estimate - sigma).square().sum()))
    assert float((total - sigma).norm() / sigma.norm()) < 0.1
    expected = float(sigma.trace() ** 2 + sigma.square().sum()) / moments.degrees_of_freedom
    assert np.mean(errors) == pytest.approx(expected, rel=0.25)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(0, 40))
def test_samples_are_dealt_evenly_and_means_stay(seed, number, samples):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    x = torch.randn(samples, 2, generator=generator)
    dealt = SubSamples(number, seed)
    features, groups = dealt(x, labels)
    assert features is x
    assert torch.equal(dealt.parents(groups), labels)
    for class_id in labels.unique():
        sizes = torch.bincount(groups[labels == class_id] - class_id * number, minlength=number)
        assert int(sizes.max() - sizes.min()) <= 1
    if samples > 6:
        whole = PrototypeMemory(2).update(x, labels)
        moments = GroupMoments([PrototypeMemory(2).update(x, groups)], dealt)
        torch.testing.assert_close(moments.sums, whole.sums, rtol=1e-12, atol=1e-12)
        assert torch.equal(moments.counts, whole.counts)


# -- never mixed -----------------------------------------------------------------------------


def test_an_estimate_is_marked_and_mixes_with_nothing_exact(tmp_path):
    estimate = GroupMoments(drawn(0, 4)).memory()
    exact = PrototypeMemory(4, "shared").update(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    for attempt in (
        lambda: estimate + exact, lambda: exact + estimate, lambda: exact - estimate,
        lambda: estimate + GroupMoments(drawn(0, 4)).memory("groups"),
        lambda: exact.load_state_dict(estimate.state_dict()),
        lambda: estimate.copy().load_state_dict(exact.state_dict()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="estimate"):
            attempt()
    with pytest.raises(ValueError, match="no samples can be added"):
        estimate.update(torch.randn(1, 4), torch.tensor([0]))
    estimate.save(tmp_path / "a.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "a.safetensors")
    assert loaded.estimated == estimate.estimated == "group means, weights=samples"
    assert torch.equal(loaded.second_moment, estimate.second_moment)
    assert estimate.at_level("mean").estimated == ""  # means are sums
    assert (estimate + loaded).total == 2 * estimate.total


def test_means_far_from_the_origin_keep_their_spread():
    sent = [m.at_level("mean") for m in drawn(3, 5, exact=False)]
    moved = [
        PrototypeMemory.from_statistics(m, classes=m.classes, counts=m.counts, means=m.means + 1e5)
        for m in sent
    ]
    near, far = (GroupMoments(each).memory("groups").scatter() for each in (sent, moved))
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-3)


def test_what_tells_nothing_says_so():
    with pytest.raises(ValueError, match="no groups"):
        GroupMoments([])
    with pytest.raises(ValueError, match="weights"):
        GroupMoments(drawn(0, 2)).memory("all")
    with pytest.raises(ValueError, match="gamma=-1"):
        with_variance(GroupMoments(drawn(0, 2)).memory(), -1)
    with pytest.raises(ValueError, match="level 'mean'"):
        with_variance(drawn(0, 2)[0], 1.0)
    with pytest.raises(ValueError, match="it is not here"):
        GroupMoments(drawn(0, 3)) - GroupMoments(drawn(1, 3))
    with pytest.raises(ValueError, match="means=0"):
        SubSamples(0)
    with pytest.raises(OverflowError, match="means=4"):
        SubSamples(4)(torch.zeros(1, 1), torch.tensor([2**62]))
    with pytest.raises(ValueError, match="regularization='auto' scores"):
        Ridge().fit(GroupMoments(drawn(0, 3)).memory())
    with pytest.raises(ValueError, match="deal all alike"):
        GroupMoments(drawn(0, 2)) + GroupMoments(drawn(0, 2), SubSamples(2))
    with pytest.warns(PrecisionWarning, match="no class has two groups"):
        alone = GroupMoments(drawn(0, 1)).memory()
    assert not alone.scatter().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_variance(alone, 0.5).scatter().diagonal().tolist() == pytest.approx([28.5] * 4)
