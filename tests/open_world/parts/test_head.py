"""The head over parts: what it answers, and that it tells unknown digits without any sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from protocl.heads import Mahalanobis, NearestMean
from protocl.memory import PrototypeMemory
from protocl.open_world.parts.codebook import learn_codebook
from protocl.open_world.parts.head import PartsHead


def fitted(head: PartsHead, x: torch.Tensor, y: torch.Tensor) -> PartsHead:
    memory = head.new_memory(x.shape[1])
    return head.fit(learn_codebook(memory, x, y, head.groups.number).update(memory, x, y))


def digits(seed: int):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(10)
    known = np.isin(y, order[:6])
    rows = np.random.default_rng(seed).permutation(len(y))
    learn = np.isin(np.arange(len(y)), rows[:1200])
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    return x, y, torch.tensor(known), torch.tensor(learn)


def test_sixteen_parts_tell_unknown_digits_without_stored_samples():
    found = []
    for seed in (0, 1):
        x, y, known, learn = digits(seed)
        asked = ~learn
        scores = []
        for parts in (1, 16):
            head = PartsHead(parts, NearestMean(normalize_input=True))
            fitted(head, x[known & learn], y[known & learn])
            scores.append(roc_auc_score(known[asked], head.known(x[asked])))
        found.append(scores)
        assert (head.predict(x[known & asked]) == y[known & asked]).float().mean() > 0.97
    one, sixteen = np.mean(found, axis=0)
    assert sixteen > 0.985
    assert sixteen > one + 0.04


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("inner", [NearestMean("cosine"), Mahalanobis(covariance="shared")])
def test_a_class_is_as_near_as_its_nearest_part(dtype, inner):
    x, y, known, _ = digits(0)
    head = fitted(PartsHead(3, inner), x[known], y[known])
    asked = x[:20].to(dtype)
    by_part, classes = head.head(asked), head.head.classes // 3
    for column, class_id in enumerate(head.classes.tolist()):
        best = by_part[:, classes == class_id].amax(1)
        torch.testing.assert_close(head(asked)[:, column], best)
    assert torch.equal(head.topk(asked, 2)[1][:, 0], head.predict(asked))
    assert head(asked[:0]).shape == (0, 6)


def test_it_follows_the_memory_and_gives_no_wrong_probabilities():
    x, y, known, _ = digits(1)
    head = PartsHead(2)
    memory = head.new_memory(64)
    codebook = learn_codebook(memory, x[known], y[known], 2)
    codebook.update(memory, x[known], y[known])
    head.fit(memory)
    gone = int(head.classes[0])
    memory.forget(codebook.ids[codebook.classes == gone])
    assert gone not in head.fit(memory).classes.tolist()
    assert head(x[:3]).shape == (3, 5)
    with pytest.raises(ValueError, match="gives no probabilities"):
        head.calibrate(memory)
    with pytest.raises(ValueError, match="empty"):
        head.fit(PrototypeMemory(64))
