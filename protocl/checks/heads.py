"""Laws that every head must keep."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from protocl.checks.comparison import CLASS_IDS, sample_batch
from protocl.heads.base import Head

HeadFactory = Callable[[], Head]


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
    assert head.classes.tolist() == sorted(CLASS_IDS), "columns are not the classes seen"
    assert head(features).shape == (len(features), len(CLASS_IDS)), "logits have another shape"
    dense = head.dense_logits(features, 1200)
    assert dense.shape == (len(features), 1200), "dense logits have another width"
    winners = set(dense.argmax(1).tolist())
    assert winners <= set(CLASS_IDS), f"classes {winners - set(CLASS_IDS)} won unseen"


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


def _fitted(factory: HeadFactory) -> tuple[Head, tuple[Tensor, Tensor]]:
    head = factory()
    batch = sample_batch(12)
    return head.fit(head.new_memory(12).update(*batch)), batch


def _weights(head: Head) -> list[Tensor]:
    return [buffer for _, buffer in head.named_buffers(recurse=False)]


def _same_objects(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(a is b for a, b in zip(found, expected, strict=True))
