"""EFC's metric: the authors' values, sums of parts, and layers that it cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocl.strategies.drift.feature_matrix import (
    classifier_rows,
    feature_matrix,
    metric_displacements,
    metric_squares,
)
from tests.golden.statistics_methods import inputs, values

GOLDEN: dict[str, Any] = values("efc")
F64 = torch.float64
WEIGHT = torch.from_numpy(0.3 * np.random.RandomState(3).standard_normal((4, 12)))


def old_samples() -> Tensor:
    data = inputs()
    return data["X"][data["y"] < 4][:120]


def displacements() -> tuple[Tensor, Tensor]:
    """Squares of the new classes' samples to the old means, and how these samples moved."""
    data = inputs()
    new = data["y"] >= 4
    means = torch.stack([data["X"][data["y"] == c].mean(0) for c in range(4)])
    matrix = feature_matrix(old_samples(), WEIGHT).mean
    return metric_squares(data["X"][new], means, matrix), (data["Z"] - data["X"])[new]


def test_the_feature_matrix_is_the_authors_and_adds_up() -> None:
    x = old_samples()
    whole = feature_matrix(x, WEIGHT)
    for found, name in ((whole.mean.diagonal(), "diagonal"), (whole.mean[0], "first_row")):
        expected = torch.tensor(GOLDEN[f"feature_matrix_{name}"], dtype=F64)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    parts = feature_matrix(x[90:], WEIGHT).plus(feature_matrix(x[:90], WEIGHT))
    torch.testing.assert_close(parts.mean, whole.mean)


def test_it_is_how_much_the_outputs_tell_of_the_features() -> None:
    """The covariance of the gradients of the log-probabilities, drawn from the softmax."""
    x, bias = old_samples()[:7], torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=F64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda f: (WEIGHT @ f + bias).log_softmax(0)))(x)
    p = (x @ WEIGHT.T + bias).softmax(1)
    expected = torch.einsum("nk,nkd,nke->de", p, jacobian, jacobian)
    torch.testing.assert_close(feature_matrix(x, WEIGHT, bias).total, expected)


def test_displacements_are_the_authors_and_add_up_under_common_limits() -> None:
    squares, moved = displacements()
    limits = float(squares.min()), float(squares.max())
    whole = metric_displacements(squares, moved, limits)
    expected = torch.tensor(GOLDEN["displacement_of_old_classes_sigma0.2"], dtype=F64)
    torch.testing.assert_close(whole.mean, expected, rtol=1e-8, atol=1e-8)
    parts = [metric_displacements(squares[i::2], moved[i::2], limits) for i in range(2)]
    torch.testing.assert_close(parts[1].plus(parts[0]).mean, whole.mean)


def test_a_classifier_that_tells_nothing_weighs_all_samples_alike() -> None:
    x = old_samples()
    squares = metric_squares(x, x[:2], feature_matrix(x, torch.zeros(3, 12)).mean)
    limits = float(squares.min()), float(squares.max())
    torch.testing.assert_close(metric_displacements(squares, x, limits).mean[1], x.mean(0))


def test_rows_of_the_classes_alone_and_only_of_one_linear_layer() -> None:
    layer = nn.Linear(3, 5)
    weight, bias = classifier_rows(nn.Sequential(layer), torch.tensor([4, 0]))
    assert torch.equal(weight, layer.weight[[4, 0]])
    assert bias is not None
    assert torch.equal(bias, layer.bias[[4, 0]])
    assert classifier_rows(nn.Linear(3, 5, bias=False), torch.tensor([1]))[1] is None
    with pytest.raises(ValueError, match="5 rows and none for class 5"):
        classifier_rows(layer, torch.tensor([5]))
    for other in (nn.Identity(), nn.ModuleList([layer, nn.Linear(3, 5)])):
        with pytest.raises(ValueError, match="needs one linear classification layer"):
            classifier_rows(other, torch.tensor([0]))
