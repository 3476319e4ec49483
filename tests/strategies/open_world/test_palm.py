"""PALM: its losses against the authors' values, its prototypes, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocl.heads import LinearDiscriminant
from protocl.strategies.open_world.mixture import (
    as_shares,
    moved,
    prototype_contrast,
    reciprocal_weights,
    sinkhorn,
)
from protocl.strategies.open_world.palm import (
    PALM,
    PALMConfig,
    PALMLoss,
    PALMPlugin,
    PrototypeMixture,
)
from tests.golden.trained_open_world import assert_close, golden, unit
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)
from tests.strategies.test_kept_state import evaluated, tensors

ROWS = torch.tensor([0, 1, 2, 0, 1, 2]).repeat(2)
VARIANTS = {"k2_m0.9": (2, 0.9), "k0_m0.9": (0, 0.9), "k2_m0.999": (2, 0.999)}


def given_values() -> tuple[PrototypeMixture, list[Tensor]]:
    """The mixture and the embeddings ``(6, 2, 8)`` of two steps."""
    rng = np.random.default_rng(101)
    mixture = PrototypeMixture()
    mixture.prototypes, mixture.owners = unit(rng.standard_normal((12, 8))), torch.arange(12) % 3
    return mixture, [unit(rng.standard_normal((6, 2, 8))) for _ in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps_are_those_of_the_authors_code(variant: str) -> None:
    expected = golden("palm")[variant]
    nearest, momentum = VARIANTS[variant]
    loss = PALMLoss(prototypes=4, nearest=nearest, momentum=momentum)
    mixture, features = given_values()
    first = features[0].clone().requires_grad_()
    embeddings = first.transpose(0, 1).flatten(0, 1)
    before = sinkhorn(embeddings.detach() @ mixture.prototypes.T)
    assert_close(before, expected["sinkhorn_before"])
    terms = loss(embeddings, ROWS, mixture)
    assert_close(terms.likelihood, expected["mle"])
    assert_close(terms.contrast, expected["proto_contra"])
    assert_close(mixture.prototypes, expected["protos_after"])
    (terms.likelihood + terms.contrast).backward()
    assert first.grad is not None
    assert_close(first.grad[0, 0], expected["grad_first_sample_first_view"])
    assert_close(first.grad.abs().sum(), expected["grad_abs_sum"])
    again = loss(features[1].transpose(0, 1).flatten(0, 1), ROWS, mixture)
    second = expected["second_step"]
    assert_close(again.likelihood, second["mle"])
    assert_close(again.contrast, second["proto_contra"])
    assert_close(mixture.prototypes[0], second["protos_after_row0"])


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(1, 7),
    prototypes=st.integers(1, 9),
    epsilon=st.sampled_from([0.005, 0.05, 1.0]),
    seed=st.integers(0, 99),
)
def test_laws_of_the_assignment(samples: int, prototypes: int, epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(samples, prototypes, generator=generator) * 2 - 1
    shares = sinkhorn(scores, epsilon)
    torch.testing.assert_close(shares.sum(1), torch.ones(samples))
    # What all samples score higher by at a prototype changes nothing.
    shifted = sinkhorn(scores + torch.rand(1, prototypes, generator=generator), epsilon)
    torch.testing.assert_close(shifted, shares, rtol=1e-2, atol=1e-3)
    order = torch.randperm(prototypes, generator=generator)
    torch.testing.assert_close(sinkhorn(scores[:, order], epsilon), shares[:, order])
    own = torch.rand(samples, prototypes, generator=generator) < 0.5
    weights = reciprocal_weights(shares, own, 2)
    assert not weights[~own].any()
    assert int((weights > 0).sum(1).max()) <= 2
    sums = weights.sum(0)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))


def test_shares_far_below_one_are_still_shares() -> None:
    """The released code divides by at least 1e-12, and such a sample is hardly drawn."""
    tiny = torch.tensor([[3e-20, 1e-20, 0.0], [0.0, 0.0, 0.0]])
    assert_close(as_shares(tiny, 1), [[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]], 1e-6)


def test_a_prototype_without_samples_keeps_its_direction() -> None:
    prototypes = unit(np.random.default_rng(0).standard_normal((3, 4)))
    weights = torch.zeros(2, 3, dtype=torch.float64)
    weights[0, 1] = 1
    embeddings = unit(np.random.default_rng(1).standard_normal((2, 4)))
    after = moved(prototypes, weights, embeddings, 0.5)
    torch.testing.assert_close(after[[0, 2]], prototypes[[0, 2]])
    assert not torch.allclose(after[1], prototypes[1])


def test_prototypes_that_are_alone_have_no_contrast() -> None:
    prototypes = unit(np.random.default_rng(0).standard_normal((3, 4)))
    assert float(prototype_contrast(prototypes, torch.arange(3))) == 0
    both = prototype_contrast(prototypes, torch.tensor([0, 0, 1]))
    logits = prototypes @ prototypes.T / 0.5
    first = logits[0, 1:].logsumexp(0) - logits[0, 1]
    second = logits[1, [0, 2]].logsumexp(0) - logits[1, 0]
    assert_close(both, float((first + second) / 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_embeddings_give_finite_losses(dtype: torch.dtype) -> None:
    mixture, features = given_values()
    mixture.prototypes = mixture.prototypes.float()
    embeddings = features[0].flatten(0, 1).to(dtype).requires_grad_()
    terms = PALMLoss(epsilon=0.005, temperature=0.01)(embeddings.float(), ROWS, mixture)
    (terms.likelihood + terms.contrast).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


def test_a_class_has_prototypes_of_its_own_whenever_it_arrives(benchmark: Any) -> None:
    plugin = PALMPlugin(PALMLoss(prototypes=3))
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    order = [c for e in benchmark.train_stream for c in sorted(e.classes_in_this_experience)]
    assert plugin.rows.ids.tolist() == order
    assert plugin.mixture.owners.tolist() == [row for row in range(6) for _ in range(3)]
    norms = plugin.mixture.prototypes.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(18))


def test_state_on_disk_is_the_plugin(benchmark: Any) -> None:
    plugin, other = PALMPlugin(), PALMPlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:1])
    other.load_state_dict(plugin.state_dict())
    assert torch.equal(other.mixture.prototypes, plugin.mixture.prototypes)
    assert other.rows.ids.tolist() == plugin.rows.ids.tolist()
    train_on(build_strategy("naive", [other], strategy.model), benchmark.train_stream[1:2])
    assert len(other.rows) == 4


def test_one_more_class_costs_the_bytes_that_are_stated(benchmark: Any) -> None:
    strategy, size = build(model=build_net()), []
    for experience in benchmark.train_stream:
        train_on(strategy, [experience])
        kept = strategy.method.state_dict() | {"projector": None}
        states = (kept, strategy.prototypes.state_dict())
        size.append(sum(tensor.nbytes for state in states for tensor in tensors(state)))
    stated = sum(evaluated(PALMConfig.info.bytes_per_class, D=16) for _ in range(2))
    assert size[2] - size[1] == stated


def build(model: Any = None, **given: Any) -> PALM:
    model = build_net(features=32) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    common = {"train_mb_size": 16, "evaluator": quiet_evaluator(), "train_epochs": 3, **given}
    return PALM(model=model, optimizer=optimizer, **common)


def test_the_strategy_answers_by_any_head_on_ordinary_statistics(benchmark: Any) -> None:
    torch.manual_seed(0)
    strategy = build(head=LinearDiscriminant(0.1), train_epochs=10)
    train_on(strategy, benchmark.train_stream[:1])
    assert strategy.memory is not None
    assert strategy.memory.level == "shared"
    outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream[:1]))
    labels = torch.tensor(list(benchmark.test_stream[0].dataset.targets))
    assert float((outputs.argmax(1) == labels).double().mean()) > 0.9


def test_a_stopped_strategy_goes_on_bit_for_bit(benchmark: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_continues_bit_for_bit(build(), benchmark, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PALMLoss(prototypes=0), r"prototypes=0: expected at least 1"),
        (lambda: PALMLoss(momentum=1.5), r"momentum=1\.5: expected a share"),
        (lambda: PALMLoss(epsilon=0.0), r"epsilon=0\.0: expected a number > 0"),
        (lambda: PALMPlugin(outputs=0), r"widths 1 and 0: expected at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
