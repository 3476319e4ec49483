"""Parts of classes: rows that merge across clients, and add up to the rows of the classes."""

from __future__ import annotations

import pytest
import torch

from protocl.heads import LinearDiscriminant, NearestMean
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.open_world.parts.codebook import learn_codebook

Y = torch.tensor([3, 9]).repeat(30)


@pytest.fixture
def x() -> torch.Tensor:
    rng = torch.Generator().manual_seed(4)
    centres = 5 * torch.randn(6, 4, generator=rng)
    return centres[torch.arange(60) % 6] + torch.randn(60, 4, generator=rng)


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_the_parts_of_a_class_add_up_to_its_row(x, level):
    empty = PrototypeMemory(4, level, feature_map=UnitNorm(), exact=True)
    codebook = learn_codebook(empty, x, Y, 3)
    parts = codebook.update(empty.empty_like(), x, Y)
    plain = empty.empty_like().update(x, Y)
    whole = codebook.whole(parts)
    assert len(parts) == 6
    for name, part in plain.parts().items():
        assert torch.equal(part, whole.parts()[name]), name


def test_clients_of_one_codebook_add_up_and_forget(x):
    empty = PrototypeMemory(4, exact=True)
    codebook = learn_codebook(empty, x[:40], Y[:40], 3)
    everything = codebook.update(empty.empty_like(), x, Y)
    first, second = (
        codebook.update(empty.empty_like(), x[rows], Y[rows])
        for rows in (slice(0, 21), slice(21, 60))
    )
    assert torch.equal((second + first).sums, everything.sums)
    left = everything - first
    assert torch.equal(left.sums, second.sums)


def test_a_small_class_has_fewer_parts_and_ids_tell_the_class(x):
    labels = torch.tensor([7] * 59 + [2])
    codebook = learn_codebook(PrototypeMemory(4), x, labels, 4)
    assert codebook.ids.tolist() == [8, 28, 29, 30, 31]
    assert codebook.classes.tolist() == [2, 7, 7, 7, 7]


def test_what_does_not_fit_is_refused(x):
    empty = PrototypeMemory(4)
    with pytest.raises(OverflowError, match="leaves no room"):
        learn_codebook(empty, x[:1], torch.tensor([2**62]), 4)
    with pytest.raises(ValueError, match="no samples"):
        learn_codebook(empty, x[:0], Y[:0], 4)
    with pytest.raises(ValueError, match="means=0"):
        learn_codebook(empty, x, Y, 0)
    with pytest.raises(KeyError, match=r"classes \[5\] are not in the codebook"):
        learn_codebook(empty, x, Y, 2).update(empty, x[:1], torch.tensor([5]))


@pytest.mark.parametrize("head", [NearestMean("cosine"), LinearDiscriminant(0.1)])
def test_one_part_is_the_class_itself(x, head):
    from protocl.open_world.parts.head import PartsHead

    memory = head.new_memory(4).update(x, Y)
    other = PartsHead(1, head.twin())
    assert torch.equal(other.fit(memory)(x), head.fit(memory)(x))
    assert other.classes.tolist() == [3, 9]
