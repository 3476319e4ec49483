"""The neural-gas graph and its losses: golden values of the authors' code, laws, corner cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocl.strategies.exemplar_free.neural_gas import (
    choose_neighbours,
    distance_cross_entropy,
    grown,
    mix_prototypes,
    neighbourhood_loss,
    update_edges,
)
from protocl.strategies.training.distances import distances, squared_distances
from protocl.strategies.training.teacher import feature_distillation
from tests.golden.napa_vq import golden, normal, random_draws

K, EPS, E_MIN = 15, 0.9, 0.9**10


def updated(edges: Tensor, squares: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    return update_edges(edges, squares, k, EPS, E_MIN)


def close(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    actual = torch.as_tensor(actual, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-6)


# -- golden values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "seed", "vectors", "width", "batch"),
    [
        ("na_loss_small", 0, 20, 8, 12),
        ("na_loss_k_ge_N", 1, 6, 4, 10),
        ("na_loss_prune", 2, 24, 4, 400),
    ],
)
@pytest.mark.parametrize("stable", [True, False])
def test_loss_gradients_and_graph_of_successive_batches(
    key: str, seed: int, vectors: int, width: int, batch: int, stable: bool
) -> None:
    randn, random = random_draws(seed)
    codes, edges = randn(vectors, width).requires_grad_(), torch.eye(vectors)
    tolerance = 1e-4 if batch > 25 else 1e-5
    for call in golden()[key]["calls"]:
        x = randn(batch, width).requires_grad_()
        labels = torch.from_numpy(random.randint(0, vectors, batch))
        squares = squared_distances(x, codes)
        directed, edges = updated(edges, squares)
        loss = neighbourhood_loss(squares, labels, directed, stable=stable)
        dx, dc = torch.autograd.grad(loss, (x, codes))
        close(loss, call["loss"], tolerance)
        assert int((edges > 0).sum()) == call["edges_nnz"]
        close(edges.sum(), call["edges_sum"], tolerance)
        close(edges[0], call["edges_row0"], tolerance)
        close(dx.norm(), call["gx_norm"], tolerance)
        close(dc.norm(), call["gc_norm"], tolerance)
        close(dx[0], call["gx_row0"], tolerance)
        close(dc[0], call["gc_row0"], tolerance)


@pytest.mark.parametrize("label", [0, 1])
def test_loss_by_hand(label: int) -> None:
    case = golden()["na_loss_hand"]
    squares = squared_distances(torch.tensor(case["x"]), torch.tensor(case["cvs"]))
    directed, _ = updated(torch.eye(3), squares)
    loss = neighbourhood_loss(squares, torch.tensor([label]), directed)
    assert float(loss) == pytest.approx(case[f"loss_label{label}"])


@pytest.mark.parametrize("copies", range(13))
def test_edges_age_with_each_miss_and_die_at_the_tenth(copies: int) -> None:
    line = torch.arange(20.0)[:, None] * torch.eye(1, 3)
    edges = torch.eye(20)
    edges[0, 18] = 1.0
    squares = squared_distances(torch.full((copies, 1), 0.1) * torch.eye(1, 3), line)
    if copies:
        _, edges = updated(edges, squares)
    seen = [edges[0, 18], edges[18, 0], edges[0, 1], edges[0, 15], edges[0, 0]]
    expected = golden()["edge_ageing"]["by_n"][str(copies)]
    close(torch.stack(seen), expected)


def test_distance_cross_entropy() -> None:
    randn, random = random_draws(3)
    features, codes = randn(5, 8), randn(12, 8)
    labels = torch.from_numpy(random.randint(0, 12, 5))
    case = golden()["dce"]
    assert labels.tolist() == case["y"]
    squares = squared_distances(features, codes)
    close(-distances(squares)[0], case["logits_row0"])
    close(distance_cross_entropy(squares, labels, 0.1), case["loss_temp0p1"])


def test_distillation_is_the_norm_of_the_whole_batch() -> None:
    features, old = normal(8)(6, 5).requires_grad_(), normal(9)(6, 5)
    case = golden()["kd"]
    close(feature_distillation(features, old), case["dist"])
    (gradient,) = torch.autograd.grad(feature_distillation(features, features.detach()), features)
    assert bool((gradient == 0).all()) is case["grad_at_equality_is_zero"]


def full_loss_inputs() -> dict[str, Tensor]:
    randn, random = random_draws(11)
    drawn = {"codes": randn(24, 8), "w": randn(6, 8), "w_old": randn(6, 8), "images": randn(32, 6)}
    labels = torch.from_numpy(random.randint(16, 24, 32))
    prototypes = randn(24, 8)
    part = (random.rand(24, 24) < 0.2) * 0.5
    edges = np.maximum(part, part.T)
    np.fill_diagonal(edges, 1.0)
    return {
        **drawn,
        "labels": labels,
        "prototypes": prototypes,
        "edges": torch.tensor(edges).float(),
    }


def test_full_loss_of_a_later_experience() -> None:
    """Every term, the draws of the augmentation, the gradients and the graph afterwards."""
    case, d = golden()["full_loss"], full_loss_inputs()
    w, codes = d["w"].requires_grad_(), d["codes"].requires_grad_()
    z = d["images"] @ w
    squares = squared_distances(z, codes)
    directed, edges = updated(d["edges"], squares)
    dce = distance_cross_entropy(squares, d["labels"], 0.1)
    na_real = neighbourhood_loss(squares, d["labels"], directed)
    close(dce, case["dce"])
    close(na_real, case["na_real"])
    close(dce, case["base_task"]["dce"])
    close(na_real, case["base_task"]["na"])
    assert case["base_task"]["other"] == 0

    anchors, uniform, weights = original_draws(edges, seed=7)
    neighbours = choose_neighbours(edges, anchors, uniform)
    mixed = mix_prototypes(d["prototypes"], anchors, neighbours, weights)
    assert anchors.tolist() == case["aug_labels"]
    assert neighbours.tolist() == case["aug_neighbours"]
    close(weights, case["aug_gamma"])
    close(mixed[0], case["aug_row0"])
    close(mixed.sum(), case["aug_sum"])

    mixed_squares = squared_distances(mixed, codes)
    directed, edges = updated(edges, mixed_squares)
    na_aug = neighbourhood_loss(mixed_squares, anchors, directed)
    augmentation = distance_cross_entropy(mixed_squares, anchors, 0.1)
    distillation = feature_distillation(z, d["images"] @ d["w_old"])
    other = 10 * augmentation + 10 * distillation
    for value, name in [
        (na_aug, "na_aug"),
        (na_real + na_aug, "na_total"),
        (augmentation, "protoaug_ce"),
        (distillation, "kd"),
        (other, "other"),
        (dce + na_real + na_aug + other, "total"),
        (edges.sum(), "edges_sum_after"),
    ]:
        close(value, case[name])
    assert int((edges > 0).sum()) == case["edges_nnz_after"]

    dw, dc = torch.autograd.grad(dce + na_real + na_aug + other, (w, codes))
    close(dw.norm(), case["gW_norm"])
    close(dc.norm(), case["gcv_norm_all"])
    close(dc[:16].norm(), case["gcv_norm_old"])
    close(dc[16:].norm(), case["gcv_norm_new"])
    close(dc[16:].norm(), case["gcv_norm_after_freeze"])


def original_draws(edges: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors ``(16,)``, uniform numbers and weights as the authors' code draws them from numpy."""
    random = np.random.RandomState(seed)
    anchors = 4 * torch.from_numpy(random.choice(4, 16))
    counts = (edges[anchors] > 0).sum(1).tolist()
    picks = [(random.choice(n) + 0.5) / n for n in counts]
    return anchors, torch.tensor(picks), torch.from_numpy(random.uniform(0.5, 1, 16)).float()


def test_grown_graph() -> None:
    case = golden()["add_cvs"]
    before = torch.eye(4)
    before[0, 1] = before[1, 0] = 0.7
    after = grown(before, case["shape"][0])
    close(after[0, 1], case["edge01"])
    block = after[4:, 4:]
    close((block - block.diagonal().diag()).sum(), case["new_block_offdiag_sum"])
    assert torch.equal(after[:4, :4], before)
    assert torch.equal(after.diagonal(), torch.ones(12))


# -- laws ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_graph_stays_symmetric_with_unit_diagonal_and_strengths_up_to_one(
    vectors: int, batch: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(vectors, 3, generator=generator)
    edges = torch.eye(vectors)
    for _ in range(3):
        x = torch.randn(batch, 3, generator=generator)
        squares = squared_distances(x, codes)
        directed, edges = updated(edges, squares, k)
        assert torch.equal(edges, edges.T)
        assert torch.equal(edges.diagonal(), torch.ones(vectors))
        assert bool(((edges == 0) | ((edges > 0) & (edges <= 1))).all())
        losers = torch.ones(vectors, dtype=torch.bool)
        losers[squares.argmin(1)] = False
        assert bool(((directed[losers] == 0) | (directed[losers] >= E_MIN)).all())
        loss = neighbourhood_loss(squares, torch.zeros(batch, dtype=torch.long), directed)
        assert float(loss) >= 0


def test_vectors_that_win_nothing_keep_their_edges() -> None:
    edges = torch.eye(3)
    edges[1, 2] = edges[2, 1] = 0.8
    squares = torch.tensor([[0.0, 1.0, 2.0]])
    directed, _ = updated(edges, squares, k=1)
    assert torch.equal(directed[1:], edges[1:])


def test_neighbours_are_drawn_evenly_and_include_the_anchor() -> None:
    edges = torch.eye(5)
    edges[2, 0] = 0.4
    edges[2, 4] = 1.0
    uniform = (torch.arange(300) + 0.5) / 300
    chosen = choose_neighbours(edges, torch.full((300,), 2), uniform)
    assert torch.bincount(chosen, minlength=5).tolist() == [100, 0, 100, 0, 100]
    assert choose_neighbours(
        torch.eye(5), torch.tensor([3, 1]), torch.tensor([0.0, 0.999])
    ).tolist() == [3, 1]


def test_mixed_prototypes_lie_on_the_segment() -> None:
    prototypes = torch.tensor([[0.0, 0.0], [4.0, 8.0]])
    mixed = mix_prototypes(
        prototypes, torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([1.0, 0.5])
    )
    assert mixed.tolist() == [[0.0, 0.0], [2.0, 4.0]]


def test_losses_have_correct_gradients() -> None:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(7, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    codes = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.arange(7) % 5
    directed, _ = update_edges(torch.eye(5).double(), squared_distances(z, codes), 2, EPS, E_MIN)
    weights = torch.randn(5, 5, dtype=torch.float64, generator=generator)

    def dce(z: Tensor, codes: Tensor) -> Tensor:
        return distance_cross_entropy(squared_distances(z, codes), labels, 0.1)

    def na(z: Tensor, codes: Tensor) -> Tensor:
        # scale=0 keeps the weights constant, as the loss takes them to be.
        return neighbourhood_loss(squared_distances(z, codes), labels, directed, scale=0.0)

    def kd(z: Tensor, codes: Tensor) -> Tensor:
        return feature_distillation(z[:5] @ codes.T, weights)

    for loss in (dce, na, kd):
        assert torch.autograd.gradcheck(loss, (z, codes))


def test_no_gradient_flows_through_the_weights_of_neighbours() -> None:
    squares = torch.tensor([[9.0, 1.0, 4.0]], dtype=torch.float64, requires_grad=True)
    edges = torch.ones(3, 3)
    (gradient,) = torch.autograd.grad(
        neighbourhood_loss(squares, torch.tensor([0]), edges, scale=0.5), squares
    )
    weights = torch.tensor([-0.5, -2.0]).double().softmax(0)
    torch.testing.assert_close(gradient, torch.cat([torch.ones(1).double(), -weights])[None])


# -- corner cases ----------------------------------------------------------------------------


def test_without_neighbours_nothing_pushes() -> None:
    squares = torch.tensor([[3.0, 1.0]], requires_grad=True)
    loss = neighbourhood_loss(squares, torch.tensor([0]), torch.eye(2))
    (gradient,) = torch.autograd.grad(loss, squares)
    assert float(loss) == 3.0
    assert gradient.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("stable", "expected"), [(True, 1e5), (False, 3e5)])
def test_far_neighbours_still_push_in_the_stable_form(stable: bool, expected: float) -> None:
    squares = torch.tensor([[3e5, 2e5]])
    loss = neighbourhood_loss(squares, torch.tensor([0]), torch.ones(2, 2), stable=stable)
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(("stable", "expected"), [(True, 5.0), (False, 5.0 - 4.0)])
def test_a_neighbour_at_distance_zero(stable: bool, expected: float) -> None:
    """Heavier than any other by far in the stable form; none in the authors' code."""
    squares = torch.tensor([[5.0, 0.0, 4.0]])
    loss = neighbourhood_loss(
        squares, torch.tensor([0]), torch.ones(3, 3), scale=10.0, stable=stable
    )
    assert float(loss) == pytest.approx(expected)


def test_features_on_their_vector_and_zero_features_give_finite_gradients() -> None:
    z = torch.zeros(3, 4, requires_grad=True)
    codes = torch.zeros(2, 4, requires_grad=True)
    squares = squared_distances(z, codes)
    labels = torch.zeros(3, dtype=torch.long)
    loss = distance_cross_entropy(squares, labels, 0.1) + neighbourhood_loss(
        squares, labels, torch.ones(2, 2)
    )
    for gradient in torch.autograd.grad(loss, (z, codes)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_distances_keep_their_digits_next_to_a_far_prototype() -> None:
    generator = torch.Generator().manual_seed(0)
    code = 3 * torch.rand(1, 512, generator=generator)
    z = code + 1e-3 * torch.randn(40, 512, generator=generator)
    exact = (z.double() - code.double()).square().sum(1, keepdim=True)
    torch.testing.assert_close(squared_distances(z, code).double(), exact, rtol=1e-6, atol=0)


def test_autocast_does_not_reach_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codes = torch.rand(8, 16, generator=generator), torch.rand(6, 16, generator=generator)
    labels = torch.arange(8) % 6

    def losses(z: Tensor) -> Tensor:
        squares = squared_distances(z, codes)
        directed, _ = updated(torch.eye(6), squares, 3)
        return torch.stack(
            [
                distance_cross_entropy(squares, labels, 0.1),
                neighbourhood_loss(squares, labels, directed),
                feature_distillation(z, z.flip(0)),
            ]
        )

    plain = losses(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = losses(z)
        half = losses(z.bfloat16())
    assert cast.dtype == half.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(half, losses(z.bfloat16().float()))


def test_step_compiles_in_one_graph() -> None:
    def step(z: Tensor, codes: Tensor, labels: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        squares = squared_distances(z, codes)
        directed, edges = update_edges(edges, squares, 3, EPS, E_MIN)
        loss = distance_cross_entropy(squares, labels, 0.1) + neighbourhood_loss(
            squares, labels, directed
        )
        return loss + feature_distillation(z, z + 1), edges

    z, codes, labels = normal(1)(8, 4), normal(2)(6, 4), torch.arange(8) % 6
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        compiled(z, codes, labels, torch.eye(6)), step(z, codes, labels, torch.eye(6)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
