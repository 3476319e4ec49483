"""The head that is trained on class Gaussians: SLCA's trajectories, and what tells its result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import PrecisionWarning
from protocl.heads import GaussianCalibrated, LinearDiscriminant
from protocl.heads.gaussian.descent import Descent
from protocl.memory.estimates.gaussians import ClassGaussians
from tests.golden.statistics_methods import inputs, values

F64 = torch.float64


def of_clients(level: str, clients: int = 8, exact: bool = False) -> PrototypeMemory:
    data, total = inputs(), PrototypeMemory(12, level, exact=exact)
    for client in reversed(range(clients)):
        chosen = data["client"] % clients == client
        total += total.empty_like().update(data["X"][chosen], data["y"][chosen])
    return total


def near(found: torch.Tensor, expected: list, tolerance: float = 1e-8) -> None:
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_merged_covariances_are_those_of_the_pooled_class():
    """A widely run code of CCVR loses 12 to 20 % of them on these clients."""
    golden, memory = values("ccvr_merge"), of_clients("full")
    covariances = memory.scatter() / (memory.counts - 1)[:, None, None]
    traces = covariances.diagonal(dim1=1, dim2=2)
    near(traces.sum(1), golden["exact_trace_by_class"])
    near(traces[5], golden["exact_covariance_class_5_diagonal"])
    lost = 1 - torch.tensor(golden["fl_bench_trace_by_class"], dtype=F64) / traces.sum(1)
    assert 0.1 < float(lost.min()) < float(lost.max()) < 0.21


@pytest.mark.parametrize(("case", "norm"), [("plain", None), ("logit_norm0.1", 0.1)])
def test_the_trajectory_of_slcas_alignment(case, norm):
    golden, gaussians = values("slca_alignment")[case], ClassGaussians(of_clients("full"))
    means, random = gaussians.means, np.random.RandomState(5)
    scale = torch.tensor([0.9 + 0.1 * (task + 1) / 3 for task in (0, 0, 1, 1, 2, 2)], dtype=F64)
    order = torch.arange(1536).reshape(6, 256).T.ravel()
    epochs = []
    for _ in range(2):
        noise = np.stack([random.standard_normal((256, 12)) for _ in range(6)])
        x = gaussians.placed(torch.from_numpy(noise)) + ((scale - 1)[:, None] * means)[:, None]
        epochs.append((x.flatten(0, 1)[order], torch.arange(6).repeat_interleave(256)[order]))
    start = means / means.norm(dim=1, keepdim=True)
    descent = Descent(2, 256, 0.01, 0.9, 5e-4, norm)
    weight, bias = descent.run(start, torch.zeros(6, dtype=F64), epochs, (2, 2, 2))
    near(weight, golden["weight"], 1e-6)
    near(bias, golden["bias"], 1e-6)


@pytest.mark.parametrize("covariance", ["full", "shared", "diagonal"])
def test_it_classifies_and_merged_fixed_point_sums_give_it_bit_for_bit(covariance):
    data, level = inputs(), "full" if covariance == "full" else covariance
    head = GaussianCalibrated(covariance, epochs=3)
    alone, merged = (of_clients(level, n, exact=True) for n in (1, 8))
    first = head.fit(alone)(data["T"])
    assert torch.equal(GaussianCalibrated(covariance, epochs=3).fit(merged)(data["T"]), first)
    assert float((head.predict(data["T"]) == data["t"]).double().mean()) > 0.8


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e4)])
def test_units_and_offsets_of_features_do_not_matter(scale, offset):
    data = inputs()
    plain, moved = (
        GaussianCalibrated(eps=1e-4 * s**2, epochs=3, dtype=F64).fit(
            PrototypeMemory(12, "full").update(data["X"] * s + o, data["y"])
        )(data["T"] * s + o)
        for s, o in ((1.0, 0.0), (scale, offset))
    )
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-3)


def test_a_start_at_the_discriminant_stays_near_it():
    data = inputs()
    memory = of_clients("full")
    lda = LinearDiscriminant(dtype=F64).fit(memory)(data["T"]).softmax(1)
    head = GaussianCalibrated(start="lda", epochs=1, lr=1e-6, weight_decay=0.0, dtype=F64)
    torch.testing.assert_close(head.fit(memory)(data["T"]).softmax(1), lda, rtol=1e-2, atol=1e-3)
    normed = GaussianCalibrated(start="lda", epochs=2, lr=0.01, logit_norm=0.1).fit(memory)
    assert float((normed.predict(data["T"]) == data["t"]).double().mean()) > 0.75


def test_it_is_fitted_under_inference_mode_and_autocast():
    memory, x = of_clients("shared"), inputs()["T"]
    plain = GaussianCalibrated(epochs=2).fit(memory)(x)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = GaussianCalibrated(epochs=2).fit(memory)(x)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"covariance": "half"}, "covariance"),
        ({"epochs": 0}, "epochs=0"),
        ({"start": "nowhere"}, "start"),
        ({"logit_norm": 0.1}, "logit_norm=0.1 with start='zero'"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(ValueError, match=match):
        GaussianCalibrated(**settings)


# -- samples ---------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["diagonal", "shared", "full"]), st.integers(0, 2**20), st.booleans())
def test_samples_follow_from_statistics_and_seed_alone(level, seed, exact):
    one, other = of_clients(level, 1, exact), of_clients(level, 4, exact)
    before = torch.get_rng_state()
    x, y = one.sample(3, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert y.tolist() == sorted([0, 1, 2, 3, 4, 5] * 3)
    again, _ = other.sample(3, seed=seed)
    if exact:
        assert torch.equal(again, x)
    torch.testing.assert_close(again, x, rtol=1e-7, atol=1e-7)
    assert not torch.equal(one.sample(3, seed=seed + 1)[0], x)


@pytest.mark.parametrize("covariance", ["full", "shared", "diagonal"])
def test_many_samples_have_the_statistics_that_they_are_drawn_from(covariance):
    memory = of_clients("full")
    x, y = memory.sample(4000, covariance=covariance, eps=0.0)
    drawn = PrototypeMemory(12, "full").update(x, y)
    torch.testing.assert_close(drawn.means, memory.means, rtol=0.2, atol=0.15)
    each = memory.scatter() / (memory.counts - 1)[:, None, None]
    if covariance == "shared":
        each = memory.scatter().sum(0).expand(6, -1, -1) / (memory.total - 6)
    if covariance == "diagonal":
        each = torch.diag_embed(each.diagonal(dim1=1, dim2=2))
    found = drawn.scatter() / 3999
    assert float((found - each).norm() / each.norm()) < 0.06


def test_scatters_of_classes_are_made_a_few_at_a_time(monkeypatch):
    """Those of a hundred classes of 3,088 features would take 7.6 GB."""
    x = torch.randn(80, 96, generator=torch.Generator().manual_seed(1))
    memory = PrototypeMemory(96, "full").update(x, torch.arange(80) % 40)
    whole, made = memory.scatter(), []
    scatter = PrototypeMemory.scatter
    monkeypatch.setattr(
        PrototypeMemory, "scatter", lambda self: made.append(scatter(self)) or made[-1]
    )
    for covariance in ("full", "diagonal", "shared"):
        memory.sample(1, covariance=covariance)
    assert sum(len(part) for part in made if part.ndim == 3) == 40
    assert max(part.numel() for part in made) <= 1 << 17
    torch.testing.assert_close(torch.cat([p for p in made if p.ndim == 3]), whole)


def test_factors_that_are_not_kept_give_the_same_samples(monkeypatch):
    def draws():
        gaussians, generator = ClassGaussians(of_clients("full")), torch.Generator().manual_seed(2)
        return torch.stack([gaussians.draw(5, generator) for _ in range(2)])

    kept = draws()
    monkeypatch.setattr("protocl.memory.estimates.gaussians._KEPT", 0)
    assert torch.equal(draws(), kept)


@pytest.mark.parametrize("change", ["update", "merge", "forget"])
def test_a_sampler_does_not_mix_statistics_of_before_and_after_a_change(change):
    memory = of_clients("full")
    gaussians, generator = ClassGaussians(memory), torch.Generator().manual_seed(2)
    gaussians.draw(2, generator)
    other = memory.copy()
    change_of = {
        "update": lambda: memory.update(other.means, other.classes),
        "merge": lambda: memory.merge(other),
        "forget": lambda: memory.forget(int(other.classes[0])),
    }
    change_of[change]()
    with pytest.raises(ValueError, match="memory has changed"):
        gaussians.draw(2, generator)


def test_samples_of_few_flat_and_single_ones():
    labels = torch.tensor([5, 2, 2, 9, 9, 9])
    flat = torch.tensor([[1.0, 7.0], [0.0, 7.0], [1.0, 7.0], [3.0, 7.0], [4.0, 7.0], [9.0, 7.0]])
    memory = PrototypeMemory(2, "full").update(flat, labels)
    x, y = memory.sample(2, eps=0.0)
    assert y.tolist() == [2, 2, 5, 5, 9, 9]
    assert torch.equal(x[2:4], torch.tensor([[1.0, 7.0]] * 2, dtype=F64))  # one sample: its mean
    torch.testing.assert_close(x[:, 1], torch.full((6,), 7.0, dtype=F64))
    assert memory.sample(0)[0].shape == (0, 2)
    for attempt, match in (
        (lambda: memory.sample(-1), "n=-1"),
        (lambda: memory.sample(1, covariance="all"), "covariance='all'"),
        (lambda: memory.sample(1, eps=-1.0), "eps=-1"),
        (lambda: PrototypeMemory(2, "full").sample(1), "empty"),
        (lambda: PrototypeMemory(2).update(flat, labels).sample(1), "level 'mean'"),
        (lambda: memory.at_level("shared").sample(1, covariance="full"), "does not follow"),
    ):
        with pytest.raises(ValueError, match=match):
            attempt()
    with pytest.warns(PrecisionWarning, match="eps=1 outweighs"):
        PrototypeMemory(2, "full").update(flat * 1e-3, labels).sample(1, eps=1.0)
