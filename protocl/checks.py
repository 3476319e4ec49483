"""Laws that every memory, head and strategy must keep: ours, and those of other packages.

Each check builds what it needs from a factory, uses random data with a seed of its own, and raises
``AssertionError`` with what was violated. A package that brings a head tests it in one line::

    from protocl import checks
    checks.check_head(lambda: MyHead())
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.strategy_checks import STRATEGY_CHECKS as STRATEGY_CHECKS
from protocl.strategy_checks import check_strategy as check_strategy

MemoryFactory = Callable[[], PrototypeMemory]
HeadFactory = Callable[[], Head]

_CLASS_IDS = (41, 3, 1000, 7, 0)
"""Ids in no order and with gaps, so that nothing can mistake a row number for a class."""


def sample_batch(feature_dim: int, samples: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative features ``(N, D)`` of five separated classes, and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(_CLASS_IDS), (samples,), generator=generator)
    rows[: len(_CLASS_IDS)] = torch.arange(len(_CLASS_IDS))
    centres = 4 * torch.rand(len(_CLASS_IDS), feature_dim, generator=generator)
    features = centres[rows] + torch.rand(samples, feature_dim, generator=generator)
    return features, torch.tensor(_CLASS_IDS)[rows]


# -- memories -------------------------------------------------------------------------------


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


# -- heads ----------------------------------------------------------------------------------


def check_head(factory: HeadFactory) -> None:
    """All laws of a head.

    Args:
        factory: makes an unfitted head; called many times.
    """
    for check in HEAD_CHECKS:
        check(factory)


def check_learns(factory: HeadFactory) -> None:
    """Five well separated classes are told apart."""
    head, (features, labels) = _fitted(factory)
    accuracy = float((head.predict(features) == labels).float().mean())
    assert accuracy > 0.9, f"accuracy {accuracy:.2f} on separated classes"


def check_classes(factory: HeadFactory) -> None:
    """Columns stand for the memory's class ids, and only classes that were seen can win."""
    head, (features, _) = _fitted(factory)
    assert head.classes.tolist() == sorted(_CLASS_IDS), "columns are not the classes seen"
    assert head(features).shape == (len(features), len(_CLASS_IDS)), "logits have another shape"
    dense = head.dense_logits(features, 1200)
    assert dense.shape == (len(features), 1200), "dense logits have another width"
    winners = set(dense.argmax(1).tolist())
    assert winners <= set(_CLASS_IDS), f"classes {winners - set(_CLASS_IDS)} won unseen"


def check_pure_prediction(factory: HeadFactory) -> None:
    """Predicting changes nothing, and a sample's logits do not depend on its batch."""
    head, (features, _) = _fitted(factory)
    first = head(features)
    assert torch.equal(head(features), first), "the same features gave other logits"
    single = torch.cat([head(row[None]) for row in features[:8]])
    torch.testing.assert_close(single, first[:8], rtol=1e-3, atol=1e-4)


def check_function_of_memory(factory: HeadFactory) -> None:
    """Equal statistics give equal heads, whatever the head was fitted to before."""
    head, (features, labels) = _fitted(factory)
    memory = head.new_memory(features.shape[1]).update(features[:90], labels[:90])
    fresh = factory().fit(memory)(features)
    assert torch.equal(head.fit(memory)(features), fresh), "the head remembers an earlier fit"


def check_merged_equals_centralised(factory: HeadFactory) -> None:
    """A head fitted to merged shards predicts what one fitted to all the data predicts."""
    head, (features, labels) = _fitted(factory)
    shards = [
        head.new_memory(features.shape[1]).update(features[i::4], labels[i::4]) for i in range(4)
    ]
    merged = factory().fit(shards[2] + shards[0] + shards[3] + shards[1])
    torch.testing.assert_close(merged(features), head(features), rtol=1e-3, atol=1e-4)


def check_refits_only_on_change(factory: HeadFactory) -> None:
    """An unchanged memory is not fitted again; a changed one is."""
    head, (features, labels) = _fitted(factory)
    memory = head.new_memory(features.shape[1]).update(features[:90], labels[:90])
    before = _weights(head.fit(memory))
    assert _same_objects(_weights(head.fit(memory)), before), "refitted to an unchanged memory"
    memory.update(features[90:], labels[90:])
    assert not _same_objects(_weights(head.fit(memory)), before), "not refitted after an update"


def check_refusals(factory: HeadFactory) -> None:
    """An unfitted head, an empty memory and NaN features are refused."""
    head, (features, _) = _fitted(factory)
    for attempt, error in (
        (lambda: factory()(features), RuntimeError),
        (lambda: factory().fit(factory().new_memory(4)), ValueError),
        (lambda: head(torch.full_like(features, float("nan"))), ValueError),
    ):
        try:
            attempt()
        except error:
            continue
        raise AssertionError(f"expected a {error.__name__}")


def check_head_random_state(factory: HeadFactory) -> None:
    """Nothing is drawn from the global random state."""
    before = torch.get_rng_state()
    head, (features, _) = _fitted(factory)
    head(features)
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"


def check_head_copies(factory: HeadFactory) -> None:
    """A deep copy predicts alike, and the ``state_dict`` stays empty: the memory is the state."""
    head, (features, _) = _fitted(factory)
    assert torch.equal(copy.deepcopy(head)(features), head(features)), "a copy predicts otherwise"
    derived = [name for name in head.state_dict() if not name.startswith("memory")]
    assert not derived, f"derived tensors {derived} are in the state_dict"


HEAD_CHECKS = (
    check_learns,
    check_classes,
    check_pure_prediction,
    check_function_of_memory,
    check_merged_equals_centralised,
    check_refits_only_on_change,
    check_refusals,
    check_head_random_state,
    check_head_copies,
)


# -- comparison -----------------------------------------------------------------------------


def assert_same(
    found: PrototypeMemory, expected: PrototypeMemory, what: str, *, bits: bool = False
) -> None:
    """Assert that two memories hold the same statistics.

    Args:
        found, expected: the memories.
        what: what is compared, for the message.
        bits: demand equal bits also of floating-point memories. Fixed-point ones must always have
            them.
    """
    assert found.classes.tolist() == expected.classes.tolist(), f"{what}: other classes"
    assert found.counts.tolist() == expected.counts.tolist(), f"{what}: other counts"
    if bits or expected.exact:
        for (name, a), (_, b) in zip(
            found.named_buffers(recurse=False), expected.named_buffers(recurse=False), strict=True
        ):
            assert torch.equal(a, b), f"{what}: other bits in '{name}'"
        return
    pairs = [(found.sums, expected.sums)]
    if expected.level != "mean":
        pairs.append((found.second_moment, expected.second_moment))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda text: f"{what}: {text}")


def _filled(factory: MemoryFactory) -> tuple[PrototypeMemory, tuple[Tensor, Tensor]]:
    batch = sample_batch(factory().feature_dim)
    return factory().update(*batch), batch


def _fitted(factory: HeadFactory) -> tuple[Head, tuple[Tensor, Tensor]]:
    head = factory()
    batch = sample_batch(12)
    return head.fit(head.new_memory(12).update(*batch)), batch


def _weights(head: Head) -> list[Tensor]:
    return [buffer for _, buffer in head.named_buffers(recurse=False)]


def _same_objects(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(a is b for a, b in zip(found, expected, strict=True))
