"""The best classes, found block by block, are those of the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.errors import NotFittedError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.heads.blockwise import ChunkedHead
from protocl.heads.ranking import ScoreBlock, best_columns

HEADS = {
    "euclidean": NearestMean,
    "cosine": lambda: NearestMean("cosine"),
    "nme": lambda: NearestMean(normalize_input=True, normalize_mean=True),
    "lda": LinearDiscriminant,
    "ridge": Ridge,
    "ranpac": lambda: Ridge(projection=40),
    "fecam": Mahalanobis,
    "fecam_low_rank": lambda: Mahalanobis(covariance="low_rank", rank=3),
    "fecam_shared": lambda: Mahalanobis(covariance="shared"),
    "bayesian": BayesianPrototypes,
}
CLASSES = 150
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def fitted(make):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3 * CLASSES, 8, generator=generator)
    labels = torch.arange(3 * CLASSES) % CLASSES * 7 + 3
    head = make()
    return head.fit(head.new_memory(8).update(features, labels)), features


@every_head
@pytest.mark.parametrize("k", [1, 5, CLASSES])
@pytest.mark.parametrize("chunk_bytes", [1, 400, 40_000, 2**23])
def test_topk_is_that_of_all_logits(make, k, chunk_bytes):
    head, features = fitted(make)
    head.chunk_bytes = chunk_bytes
    # A head without a block form computes fewer rows at a time than forward does.
    queries = features[:40] if isinstance(head, ChunkedHead) else features[:1]
    values, order = head(queries).sort(dim=1, descending=True, stable=True)
    best, ids = head.topk(queries, k)
    assert torch.equal(best, values[:, :k])
    assert torch.equal(ids, head.classes[order[:, :k]])
    assert torch.equal(head.predict(queries), ids[:, 0])


@every_head
def test_the_chunk_changes_nothing_but_rounding(make):
    head, features = fitted(make)
    whole = head(features)
    head.chunk_bytes = 4_000
    torch.testing.assert_close(head(features), whole, rtol=1e-4, atol=1e-4)


def test_a_head_without_a_block_form_agrees_to_rounding():
    head, features = fitted(BayesianPrototypes)
    values, ids = head(features).sort(dim=1, descending=True, stable=True)
    head.chunk_bytes = 2_000
    best, found = head.topk(features, 3)
    torch.testing.assert_close(best, values[:, :3], rtol=1e-4, atol=1e-5)
    assert (found == head.classes[ids[:, :3]]).float().mean() > 0.99


@given(
    scores=st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=5),
    k=st.integers(1, 9),
    width=st.integers(1, 9),
    band=st.integers(1, 5),
)
@settings(max_examples=200, deadline=None)
def test_ties_go_to_the_lower_column(scores, k, width, band):
    matrix = torch.tensor(scores, dtype=torch.float32)
    blocks = (
        ScoreBlock(slice(i, i + len(part)), slice(j, j + piece.shape[1]), piece)
        for i, part in zip(range(0, len(matrix), band), matrix.split(band), strict=True)
        for j, piece in zip(range(0, 9, width), part.split(width, dim=1), strict=True)
    )
    values = torch.empty(len(matrix), k)
    columns = torch.empty(len(matrix), k, dtype=torch.int64)
    best_columns(blocks, (values, columns))
    expected, order = matrix.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    assert torch.equal(columns, order[:, :k])


def test_equal_classes_answer_by_the_lower_id():
    head = NearestMean()
    memory = head.new_memory(2).update(torch.ones(3, 2), torch.tensor([9, 4, 7]))
    head.fit(memory)
    assert head.topk(torch.zeros(1, 2), 2)[1].tolist() == [[4, 7]]
    assert head.predict(torch.zeros(1, 2)).tolist() == [4]


def test_no_block_exceeds_the_bound():
    head, features = fitted(NearestMean)
    head.chunk_bytes = 4_000
    blocks = list(head._blocks(features, head._mapped))
    assert max(block.scores.nbytes for block in blocks) <= 4_000
    assert sum(block.scores.numel() for block in blocks) == len(features) * CLASSES
    assert len({block.scores.data_ptr() for block in blocks}) == 1, "the buffer is made anew"


@every_head
def test_what_is_refused(make):
    with pytest.raises(NotFittedError):
        make().topk(torch.zeros(1, 8), 1)
    head, features = fitted(make)
    for k in (0, CLASSES + 1):
        with pytest.raises(ValueError, match=f"k={k}: expected 1 to {CLASSES}"):
            head.topk(features, k)
    with pytest.raises(ValueError, match="NaN or infinite"):
        head.predict(torch.full((2, 8), torch.inf))
    assert head.topk(features[:0], 3)[1].shape == (0, 3)
