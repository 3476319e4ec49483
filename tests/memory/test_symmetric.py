"""Triangles stand for symmetric matrices, bit for bit."""

from __future__ import annotations

import pytest
import torch

from protocl.memory.symmetric import (
    diagonal_places,
    pack_triangles,
    triangle_size,
    unpack_triangles,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (0,)])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_packing_and_unpacking_are_inverse(width, shape, dtype):
    values = (100 * torch.rand(*shape, width, width)).to(dtype)
    matrices = values + values.mT
    packed = pack_triangles(matrices)
    assert packed.shape == (*shape, triangle_size(width))
    assert torch.equal(unpack_triangles(packed, width), matrices)
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    assert torch.equal(packed[..., diagonal_places(width)], diagonal)


def test_rows_follow_each_other():
    matrix = torch.tensor([[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert pack_triangles(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert diagonal_places(3).tolist() == [0, 3, 5]
