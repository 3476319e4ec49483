"""The whitened space: what it is by definition, and which statistics it refuses to mix."""

from __future__ import annotations

import pytest
import torch

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import Tukey
from protocl.open_world.discovery.whitened import Whitened


def memory_of(
    seed: int = 0, level: str = "shared", **options
) -> tuple[PrototypeMemory, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    samples = (torch.randn(80, 4, generator=rng, dtype=torch.float64) @ mixing).abs()
    labels = torch.arange(80) % 5
    return PrototypeMemory(4, level, **options).update(samples, labels), samples


@pytest.mark.parametrize("level", ["shared", "full"])
def test_scatter_within_classes_is_the_identity(level):
    memory, samples = memory_of(level=level, feature_map=Tukey(0.5))
    space = Whitened.of(memory, shrinkage=0.0, unit_length=False)
    inside = PrototypeMemory(4, "shared", feature_map=space)
    inside.update(samples, torch.arange(80) % 5)
    torch.testing.assert_close(inside.scatter() / 75, torch.eye(4, dtype=torch.float64))
    assert inside.sums.sum(0).abs().max() < 1e-9
    # Without the length the map is linear: sums follow from those of the memory.
    moved = (memory.sums - memory.counts[:, None] * space._middle) @ space._matrix
    torch.testing.assert_close(inside.sums, moved)


def test_spaces_of_different_memories_do_not_mix():
    spaces = [Whitened.of(memory_of(seed)[0]) for seed in (0, 0, 1)]
    a, b, c = (PrototypeMemory(4, feature_map=space) for space in spaces)
    a.merge(b)
    with pytest.raises(ValueError, match="cannot combine"):
        a.merge(c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_any_precision_and_no_samples(dtype):
    memory, samples = memory_of()
    space = Whitened.of(memory)
    found = space(samples.to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), space(samples), atol=2e-2, rtol=0)
    assert space(samples[:0].to(dtype)).shape == (0, 4)


def test_what_does_not_tell_scatter_is_refused():
    memory, samples = memory_of()
    with pytest.raises(ValueError, match="level 'mean' do not tell"):
        Whitened.of(memory.at_level("mean"))
    with pytest.raises(ValueError, match="2 samples of 2 classes"):
        Whitened.of(PrototypeMemory(4, "shared").update(samples[:2], torch.tensor([0, 1])))
