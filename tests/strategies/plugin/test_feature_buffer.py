"""Mini-batches joined to chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocl.heads import LinearDiscriminant, Mahalanobis
from protocl.memory import PrototypeMemory
from protocl.strategies.plugin.feature_buffer import FeatureBuffer, in_chunks
from protocl.strategies.plugin.prototypes import Prototypes


def batches(sizes, tasks):
    start = 0
    for size in sizes:
        labels = torch.arange(start, start + size)
        yield labels[:, None] * torch.ones(3), labels, labels % 2 if tasks else None
        start += size


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.booleans())
def test_pieces_hold_every_sample_once_and_in_order(sizes, tasks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocl.strategies.plugin.feature_buffer.MOST_SAMPLES", 7)
        chunks = [
            (features.clone(), labels.clone(), None if seen is None else seen.clone())
            for features, labels, seen in in_chunks(batches(sizes, tasks))
        ]
    everything = torch.arange(sum(sizes))
    assert torch.equal(torch.cat([labels for _, labels, _ in chunks]), everything)
    assert torch.equal(torch.cat([features for features, _, _ in chunks])[:, 0].long(), everything)
    assert max(len(labels) for _, labels, _ in chunks) <= max(7, *sizes)
    if tasks:
        assert torch.equal(torch.cat([seen for _, _, seen in chunks]), everything % 2)


def test_another_kind_of_batch_does_not_fit():
    buffer = FeatureBuffer()
    features, labels = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    buffer.add((features, labels, None))
    assert buffer.fits((features, labels, None))
    for other in (
        (features.double(), labels, None),
        (features[:, :2], labels, None),
        (features, labels, labels),
    ):
        assert not buffer.fits(other)
        with pytest.raises(ValueError, match="2 samples wait"):
            buffer.add(other)
    buffer.take()
    buffer.add((features.double(), labels, None))
    assert buffer.take()[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("head", "lengths"), [(LinearDiscriminant(), [4, 4, 4]), (Mahalanobis(), [12])]
)
def test_second_moments_of_classes_get_more_samples_at_once(monkeypatch, head, lengths):
    monkeypatch.setattr("protocl.strategies.plugin.feature_buffer.MOST_ELEMENTS", 3 * 4)
    monkeypatch.setattr("protocl.strategies.plugin.prototypes.MOST_ELEMENTS_BY_CLASS", 3 * 16)
    update, seen = PrototypeMemory.update, []

    def spy(memory, features, labels):
        seen.append(len(labels))
        return update(memory, features, labels)

    monkeypatch.setattr(PrototypeMemory, "update", spy)
    learner = Prototypes(head)
    learner.learn((features, labels % 2, None) for features, labels, _ in batches([2] * 6, False))

    assert seen == lengths
    assert learner.memory.counts.tolist() == [6, 6]
