"""Explanations of a classifier's answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from protocl.heads import NearestMean, Ridge
from protocl.model import PrototypeClassifier

X, Y = load_digits(return_X_y=True)
NAMES = np.array([f"digit {i}" for i in range(10)])


def test_an_answer_with_its_reasons():
    model = PrototypeClassifier(Ridge()).fit(X[:900], NAMES[Y[:900]])
    asked = X[900:905]
    stored = X[:50]
    found = model.explain(asked, top=3, stored=stored, labels=NAMES[Y[:50]].tolist())
    chances, scores = model.predict_proba(asked), model.scores(asked)
    for n, one in enumerate(found):
        first = one.prototypes[0]
        assert first.label == model.predict(asked)[n]
        assert first.behind == 0
        assert [each.share for each in one.prototypes] == sorted(chances[n], reverse=True)[:3]
        second = np.sort(scores[n])[-2]
        assert one.prototypes[1].behind == pytest.approx(scores[n].max() - second)
        own = X[:900][NAMES[Y[:900]] == first.label]
        assert first.samples == len(own)
        cosines = stored @ asked[n] / np.linalg.norm(stored, axis=1) / np.linalg.norm(asked[n])
        assert one.samples[0].number == cosines.argmax()
        assert one.samples[0].cosine == pytest.approx(cosines.max())
        assert one.total == pytest.approx(one.aleatoric + one.epistemic)
        assert one.unknown == model.guesses(asked)[n].unknown


def test_distance_is_under_the_head_s_map():
    model = PrototypeClassifier(NearestMean(normalize_input=True)).fit(X[:100], Y[:100])
    (one,) = model.explain(X[:1], top=1)
    units = X[:100] / np.linalg.norm(X[:100], axis=1, keepdims=True)
    mean = units[Y[:100] == one.prototypes[0].label].mean(0)
    assert one.prototypes[0].distance == pytest.approx(np.linalg.norm(units[0] - mean), abs=1e-5)


def test_what_a_memory_of_means_cannot_tell_is_none():
    model = PrototypeClassifier(NearestMean()).fit(X[:2], Y[:2])
    (one,) = model.explain(X[:1])
    assert [len(one.prototypes), one.samples] == [2, []]
    assert one.prototypes[0].share is None
    assert (one.total, one.aleatoric, one.epistemic, one.unknown) == (None,) * 4


def test_few_samples_leave_more_to_be_learned():
    few, many = (
        PrototypeClassifier(Ridge()).fit(X[:n], Y[:n]).explain(X[1000:1060]) for n in (40, 900)
    )

    def mean(part: str, found: list) -> float:
        return float(np.mean([getattr(one, part) for one in found]))

    assert mean("epistemic", few) > 2 * mean("epistemic", many)


def test_it_follows_what_is_learned_and_refuses_what_does_not_fit():
    model = PrototypeClassifier(Ridge()).fit(X[:100], Y[:100])
    before = model.explain(X[200:201])[0]
    model.partial_fit(X[100:800], Y[100:800])
    assert model.explain(X[200:201])[0].epistemic != before.epistemic
    with pytest.raises(ValueError, match="0 sample"):
        model.explain(X[:0])
    with pytest.raises(ValueError, match="top=0"):
        model.explain(X[:1], top=0)
    with pytest.raises(ValueError, match="3 stored samples, 2 labels"):
        model.explain(X[:1], stored=X[:3], labels=[1, 2])
