"""Laws that every memory must keep."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from protocl.checks.comparison import assert_same, sample_batch
from protocl.memory import PrototypeMemory

MemoryFactory = Callable[[], PrototypeMemory]


def check_memory(factory: MemoryFactory) -> None:
    """All laws of a memory.

    Args:
        factory: makes an empty memory; called many times.
    """
    for check in MEMORY_CHECKS:
        check(factory)


def check_split(factory: MemoryFactory) -> None:
    """Any split into batches, in any order of samples, gives the same statistics."""
    whole, (features, labels) = _filled(factory)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    parts = factory()
    for piece in order.split(17):
        parts.update(features[piece], labels[piece])
    assert_same(parts, whole, "updates in small shuffled batches against one update")


def check_merge(factory: MemoryFactory) -> None:
    """Merged shards equal the whole; merging commutes and is associative."""
    whole, (features, labels) = _filled(factory)
    shards = [factory().update(features[i::3], labels[i::3]) for i in range(3)]
    a, b, c = shards
    assert_same((a + b) + c, whole, "three shards merged against one update")
    assert_same(a + (b + c), (a + b) + c, "merging is associative")
    assert_same(a + b, b + a, "merging commutes")
    assert_same(a + factory(), a, "merging an empty memory changes nothing")


def check_subtract(factory: MemoryFactory) -> None:
    """Subtraction undoes a merge."""
    features, labels = sample_batch(factory().feature_dim)
    kept = factory().update(features[:70], labels[:70])
    gone = factory().update(features[70:], labels[70:])
    assert_same((kept + gone) - gone, kept, "a merged memory subtracted again")
    everything = kept + gone
    everything -= everything.copy()
    assert len(everything) == 0, "a memory minus itself still has classes"


def check_refused_batch_changes_nothing(factory: MemoryFactory) -> None:
    """A batch with a NaN is refused and leaves no trace."""
    memory, (features, labels) = _filled(factory)
    before = memory.copy()
    bad = features.clone()
    bad[len(bad) // 2, 0] = float("nan")
    try:
        memory.update(bad, labels + 1)
    except ValueError:
        assert_same(memory, before, "a refused batch")
        assert memory.revision == before.revision, "a refused batch changed the revision"
        return
    raise AssertionError("update accepted a NaN")


def check_input_untouched(factory: MemoryFactory) -> None:
    """Neither updates nor merges change or keep hold of what they are given."""
    memory, (features, labels) = _filled(factory)
    other, _ = _filled(factory)
    mine, theirs = (features.clone(), labels.clone()), other.copy()
    memory.update(features, labels).merge(other)
    assert torch.equal(features, mine[0]), "update changed the features"
    assert torch.equal(labels, mine[1]), "update changed the labels"
    assert_same(other, theirs, "the memory that was merged in")
    snapshot = memory.copy()
    features.zero_()
    other.update(features, labels)
    assert_same(memory, snapshot, "a memory after its sources changed")


def check_state_dict(factory: MemoryFactory) -> None:
    """A fresh memory takes over a ``state_dict``, through a file that holds tensors only."""
    memory, _ = _filled(factory)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    fresh = factory()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same(fresh, memory, "a memory restored from its state_dict")


def check_file(factory: MemoryFactory) -> None:
    """A memory survives its own file, bit for bit."""
    memory, _ = _filled(factory)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        memory.save(path)
        loaded = PrototypeMemory.load(path, feature_map=memory.feature_map)
    assert_same(loaded, memory, "a memory loaded from its file", bits=True)


def check_copies(factory: MemoryFactory) -> None:
    """Copies are independent of the original."""
    memory, (features, labels) = _filled(factory)
    twin, deep = memory.copy(), copy.deepcopy(memory)
    memory.update(features, labels)
    assert_same(twin, deep, "two copies", bits=True)
    assert twin.total * 2 == memory.total, "a copy followed its original"


def check_casting(factory: MemoryFactory) -> None:
    """Casting the surrounding model does not cost the statistics their precision."""
    memory, _ = _filled(factory)
    before = memory.copy()
    torch.nn.ModuleList([memory]).half()
    assert_same(memory, before, "a memory inside a model cast to half precision", bits=True)


def check_half_precision_input(factory: MemoryFactory) -> None:
    """Half-precision features give what the same numbers give in float32."""
    features, labels = sample_batch(factory().feature_dim)
    half = features.to(torch.bfloat16)
    assert_same(
        factory().update(half, labels),
        factory().update(half.float(), labels),
        "bfloat16 against the same numbers in float32",
    )


def check_random_state(factory: MemoryFactory) -> None:
    """Nothing is drawn from the global random state."""
    before = torch.get_rng_state()
    memory, _ = _filled(factory)
    memory.merge(memory.copy())
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"


def check_bounded_growth(factory: MemoryFactory) -> None:
    """The size depends on the classes, not on the number of samples."""
    memory, (features, labels) = _filled(factory)
    for _ in range(3):  # the first sums are exact; later ones may keep their rounding
        memory.update(features, labels)
    size = memory.nbytes
    for _ in range(3):
        memory.update(features, labels)
    assert memory.nbytes == size, f"grew from {size} to {memory.nbytes} bytes on known classes"


MEMORY_CHECKS = (
    check_split,
    check_merge,
    check_subtract,
    check_refused_batch_changes_nothing,
    check_input_untouched,
    check_state_dict,
    check_file,
    check_copies,
    check_casting,
    check_half_precision_input,
    check_random_state,
    check_bounded_growth,
)


def _filled(factory: MemoryFactory) -> tuple[PrototypeMemory, tuple[Tensor, Tensor]]:
    batch = sample_batch(factory().feature_dim)
    return factory().update(*batch), batch
