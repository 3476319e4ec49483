"""Detection by a score: against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.metrics.detection import auroc, average_precision, detection, fpr_at_recall

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25)


@given(SCORES, SCORES)
@settings(max_examples=40, deadline=None)
def test_each_measure_is_what_counting_gives(known, unknown):
    pairs = [(k > u) + (k == u) / 2 for k in known for u in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))
    keeping = [t for t in known if np.mean(np.array(known) >= t) >= 0.95 - 1e-12]
    accepted = np.mean(np.array(unknown) >= max(keeping))
    assert fpr_at_recall(known, unknown) == pytest.approx(accepted)
    found = detection(known, unknown)
    turned = detection(-np.array(unknown), -np.array(known))
    assert (found.fpr95, found.auroc) == pytest.approx((turned.fpr95_unknown, turned.auroc))
    assert found.aupr_unknown == pytest.approx(
        average_precision(*(-np.array(unknown), -np.array(known)))
    )


def test_one_of_each():
    assert detection([1.0], [0.0]).fpr95 == 0
    assert detection([0.0], [1.0]).auroc == 0


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"unknown: expected a vector.*\(0,\)"):
        detection([1.0], [])
    with pytest.raises(ValueError, match=r"\(1, 1\)"):
        detection([[1.0]], [1.0])
