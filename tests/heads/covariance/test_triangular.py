"""Inverses of triangular matrices."""

from __future__ import annotations

import pytest
import torch

from protocl.heads.covariance.triangular import inverses


def _factors(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(*shape[:-2], shape[-1] + 9, shape[-1], generator=generator).double()
    # Features of different scales and of little that is their own, as covariances have them.
    samples *= torch.logspace(-3, 2, shape[-1])
    return torch.linalg.cholesky(samples.mT @ samples).to(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 129), (3, 301, 301), (0, 200, 200)])
def test_products_with_the_factor_are_as_near_the_identity_as_those_of_a_solution(shape):
    factors = _factors(*shape)
    identity = torch.eye(shape[-1], dtype=torch.float64)
    solved = torch.linalg.solve_triangular(factors, identity, upper=False)

    found = inverses(factors)

    assert found.shape == factors.shape
    assert torch.equal(found, found.tril())
    assert torch.dist(found @ factors, identity) <= 2 * torch.dist(solved @ factors, identity)


def test_a_pivot_of_zero_leaves_no_finite_inverse():
    factors = _factors(2, 200, 200)
    factors[1, 150, 150] = 0

    found = inverses(factors)

    assert torch.isfinite(found[0]).all()
    assert not torch.isfinite(found[1]).all()


def test_single_precision_stays_single():
    factors = _factors(200, 200, dtype=torch.float32)

    found = inverses(factors)

    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), inverses(factors.double()), rtol=1e-3, atol=1e-3 * float(found.abs().max())
    )
