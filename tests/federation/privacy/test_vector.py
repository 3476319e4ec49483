"""Vectors of statistics: the sum of vectors is the merge of memories, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protocl import PrototypeMemory
from protocl.checks import assert_same, sample_batch
from protocl.errors import FingerprintError
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.memory.batch import LEVELS
from protocl.memory.feature_maps import UnitNorm

CLASSES = [0, 3, 7, 41, 500, 1000]


def memories(level: str, **kind: object) -> list[PrototypeMemory]:
    """Three clients; the first lacks a class that the others have."""
    made = []
    for client in range(3):
        features, labels = sample_batch(5, samples=30, seed=client)
        keep = labels != 41 if client == 0 else labels >= 0
        memory = PrototypeMemory(5, level, exact=True, fingerprint="f", **kind)  # type: ignore[arg-type]
        made.append(memory.update(features[keep], labels[keep]))
    return made


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [{}, {"raw_means": True, "feature_map": UnitNorm()}])
def test_sum_of_vectors_is_merge(level: str, kind: dict[str, object]) -> None:
    clients = memories(level, **kind)
    layout = StatisticsLayout(clients[0], CLASSES)
    found = layout.unpack(sum(layout.pack(m) for m in clients))  # type: ignore[arg-type]
    assert_same(found, clients[0] + clients[1] + clients[2], level)
    assert found.fingerprint == "f"
    assert found.describe() == clients[0].describe()


def test_symmetric_moments_travel_once() -> None:
    clients = memories("full")
    layout = StatisticsLayout(clients[0], CLASSES)
    assert layout.size == len(CLASSES) * (1 + 5 + 15)
    assert StatisticsLayout(memories("shared")[0], CLASSES).size == len(CLASSES) * 6 + 15


@pytest.mark.parametrize("level", LEVELS)
def test_no_classes_at_all(level: str) -> None:
    layout = StatisticsLayout(PrototypeMemory(5, level, exact=True), CLASSES)  # type: ignore[arg-type]
    vector = layout.pack(layout.empty_memory())
    assert not vector.any()
    assert len(layout.unpack(vector)) == 0


def test_minimum_count_leaves_classes_out() -> None:
    memory = memories("mean")[1]
    layout = StatisticsLayout(memory, CLASSES)
    least = int(memory.counts.min())
    kept = layout.unpack(layout.pack(memory), minimum_count=least + 0.5)
    assert kept.classes.tolist() == memory.classes[memory.counts > least].tolist()


def test_digest_tells_agreements_apart() -> None:
    memory = PrototypeMemory(5, exact=True, fingerprint="f")
    digests = {
        StatisticsLayout(memory, CLASSES).digest,
        StatisticsLayout(memory, CLASSES[1:]).digest,
        StatisticsLayout(PrototypeMemory(6, exact=True, fingerprint="f"), CLASSES).digest,
        StatisticsLayout(PrototypeMemory(5, exact=True, fingerprint="g"), CLASSES).digest,
    }
    assert len(digests) == 4
    assert StatisticsLayout(memory, reversed(CLASSES)).digest in digests


def test_refusals() -> None:
    memory = memories("mean")[1]
    layout = StatisticsLayout(memory, CLASSES)
    with pytest.raises(ValueError, match="exact=True"):
        StatisticsLayout(PrototypeMemory(5), CLASSES)
    with pytest.raises(ValueError, match="ids of 0 or greater"):
        StatisticsLayout(memory, [])
    with pytest.raises(ValueError, match=r"\[41\] are not in the agreed list"):
        StatisticsLayout(memory, [0, 3, 7, 1000]).pack(memory)
    with pytest.raises(ValueError, match="level is mean here, diagonal"):
        layout.pack(memories("diagonal")[1])
    with pytest.raises(FingerprintError):
        layout.pack(PrototypeMemory(5, exact=True, fingerprint="other"))
    with pytest.raises(ValueError, match=r"expected \(36,\) int64"):
        layout.unpack(np.zeros(35, dtype=np.int64))
    huge = PrototypeMemory(5, exact=True)
    huge.update(torch.zeros(1, 5), torch.tensor([0])).count.fill_(2**48)
    with pytest.raises(OverflowError, match=r"2\^47"):
        layout.pack(huge)


def test_a_number_of_classes_in_place_of_their_ids_is_refused():
    with pytest.raises(TypeError, match=r"classes=3: expected their ids, such as range\(3\)"):
        StatisticsLayout(PrototypeMemory(2, exact=True), classes=3)
    with pytest.raises(TypeError, match="expected integer class ids"):
        StatisticsLayout(PrototypeMemory(2, exact=True), classes=[1.5])
