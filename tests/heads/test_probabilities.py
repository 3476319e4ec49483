"""Probabilities mean what they say, follow from the statistics alone, and change no answer."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from protocl import PrototypeMemory
from protocl.errors import NotFittedError
from protocl.heads import (
    BayesianPrototypes,
    GaussianCalibrated,
    LinearDiscriminant,
    Mahalanobis,
    NearestMean,
    Ridge,
)
from protocl.heads.bayesian.priors import SharedPrior
from protocl.heads.joint.ensemble import Ensemble
from protocl.heads.probabilities.calibration import Calibration, fit_calibration, probabilities
from protocl.heads.probabilities.table import CalibrationTable
from protocl.metrics.calibration import equal_mass_error
from tests.second_device import second_device

HEADS = {
    "euclidean": NearestMean,
    "cosine": lambda: NearestMean("cosine"),
    "nme": lambda: NearestMean(normalize_input=True, normalize_mean=True),
    "lda": LinearDiscriminant,
    "lda_auto": lambda: LinearDiscriminant("auto"),
    "ridge": Ridge,
    "ranpac": lambda: Ridge(projection=400),
    "fecam": Mahalanobis,
    "fecam_vit": Mahalanobis.fecam_vit,
    "fecam_low_rank": lambda: Mahalanobis(covariance="low_rank", rank=3),
    "fecam_shared": lambda: Mahalanobis(covariance="shared"),
    "bayesian": BayesianPrototypes,
    "bayesian_diag": lambda: BayesianPrototypes(covariance="diag"),
    "bayesian_full": lambda: BayesianPrototypes(covariance="full"),
}
CLASSES = 5
IDS = torch.tensor([3, 10, 17, 24, 31])
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def samples(n=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    middles = torch.rand(CLASSES, 6, generator=torch.Generator().manual_seed(99))
    noise = 0.2 * torch.randn(n, 6, generator=generator)
    return (middles[labels] + noise).abs(), IDS[labels]


def remembered(head, *batches, **options):
    memory = head.new_memory(6, calibrated=True, **options)
    for batch in batches:
        memory.update(*batch)
    return memory


def small(make):
    head = make()
    if isinstance(head, Ridge) and head.projection:
        head.projection = 20
    return head


@every_head
def test_rows_sum_to_one_in_the_order_of_logits_that_stay_as_they_were(make):
    head, (features, labels) = small(make), samples()
    memory = remembered(head, (features, labels))
    before = head.fit(memory)(features)
    answers = head.predict(features)
    table = head.calibration_table(memory, features, labels, parts=3)
    for exchanged in (None, table):
        chances = head.calibrate(memory, exchanged).predict_proba(features)
        assert chances.shape == (len(features), CLASSES)
        assert chances.dtype == torch.float64
        torch.testing.assert_close(chances.sum(1), torch.ones(len(features), dtype=torch.float64))
        assert torch.equal(head(features), before)
        assert torch.equal(head.classes[chances.argmax(1)], answers)
        ranked = before.double().sort(dim=1, stable=True).indices
        assert bool((chances.gather(1, ranked).diff(dim=1) >= 0).all())


@every_head
def test_a_federation_has_the_bits_of_one_place_and_forgetting_leaves_no_trace(make):
    head, batch, guest, queries = small(make), samples(), samples(40, seed=1), samples(9, 2)[0]
    alone = remembered(head, batch, exact=True)
    parts = [remembered(head, (batch[0][i::3], batch[1][i::3]), exact=True) for i in (2, 0, 1)]
    visit = remembered(head, guest, exact=True)
    expected = head.calibrate(alone).predict_proba(queries)
    for memory in (sum(parts), alone + visit - visit):
        assert torch.equal(small(make).calibrate(memory).predict_proba(queries), expected)
    known = head.calibration_table(alone, *batch, parts=3)
    again = small(make).calibrate(sum(parts), known).predict_proba(queries)
    assert torch.equal(head.calibrate(alone, known).predict_proba(queries), again)


@every_head
def test_renamed_classes_keep_their_probabilities(make):
    head, (features, labels) = small(make), samples()
    expected = head.calibrate(remembered(head, (features, labels))).predict_proba(features)
    renamed = 40 - labels  # 37, 30, ...: the reverse order
    turned = head.calibrate(remembered(head, (features, renamed))).predict_proba(features)
    torch.testing.assert_close(turned.flip(1), expected, rtol=0, atol=2e-3)


def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(5).permutation(len(labels))
    features, labels = torch.tensor(features[order] / 16).float(), torch.tensor(labels[order])
    return (features[:1250], labels[:1250]), (features[1250:], labels[1250:])


def error(head, chances, labels):
    sure, answers = chances.max(1)
    return equal_mass_error(sure, head.classes[answers] == labels)


@every_head
def test_digits_are_calibrated_by_statistics_and_by_samples_left_out(make):
    train, (features, labels) = digits()
    head = make()
    memory = head.new_memory(64, calibrated=True).update(*train)
    by_statistics = head.calibrate(memory).predict_proba(features)
    assert error(head, by_statistics, labels) <= 0.05
    table = head.calibration_table(memory, *train, parts=2)
    by_samples = head.calibrate(memory, table).predict_proba(features)
    assert error(head, by_samples, labels) <= 0.05


@pytest.mark.parametrize("name", ["euclidean", "cosine", "nme", "ridge", "ranpac", "fecam"])
def test_the_softmax_of_the_logits_is_not_calibrated(name):
    train, (features, labels) = digits()
    head = HEADS[name]()
    head.fit(head.new_memory(64).update(*train))
    assert error(head, head(features).double().softmax(1), labels) > 0.1


def test_gaussian_classes_are_predicted_nearly_as_well_as_by_the_true_model():
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(4, 5, generator=generator)
    labels = torch.arange(4).repeat(500)
    features = middles[labels] + torch.randn(2000, 5, generator=generator)
    head = LinearDiscriminant()
    memory = head.new_memory(5).update(features[:400], labels[:400])
    ours = head.calibrate(memory).predict_proba(features[400:])
    peer = LinearDiscriminantAnalysis().fit(features[:400].numpy(), labels[:400].numpy())
    theirs = torch.tensor(peer.predict_proba(features[400:].numpy()))
    losses = [-p.log().gather(1, labels[400:, None]).mean() for p in (ours, theirs)]
    assert losses[0] < losses[1] + 0.02


# -- the table ------------------------------------------------------------------------------


def shares():
    features, labels = samples()
    return [(features[i::4], labels[i::4]) for i in range(4)]


def test_tables_of_clients_add_up_in_any_order_and_travel_as_json():
    head = NearestMean()
    memory = head.new_memory(6).update(*samples())
    tables = [head.calibration_table(memory, *share) for share in shares()]
    sent = [CalibrationTable.from_dict(json.loads(json.dumps(t.to_dict()))) for t in tables]
    there, back = sum(sent), sum(reversed(tables))
    assert there.to_dict() == back.to_dict()
    assert there.samples == 150
    queries = samples(9, 2)[0]
    chances = head.calibrate(memory, there).predict_proba(queries)
    assert torch.equal(chances, NearestMean().calibrate(memory, back).predict_proba(queries))


@given(cut=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_the_table_of_a_union_is_the_sum_of_tables(cut, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(40, 3, generator=generator)
    rows = torch.randint(3, (40,), generator=generator)
    first, second, both = (
        CalibrationTable.of(logits[part], rows[part], start=-6)
        for part in (slice(0, cut), slice(cut, 40), slice(0, 40))
    )
    assert (first + second).to_dict() == both.to_dict()
    assert both.samples == 40
    assert bool((both.correct.sum(1) == (logits.argmax(1) == rows).sum()).all())


def test_a_table_holds_the_answers_of_a_head_that_has_not_seen_the_samples():
    features = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    labels = torch.tensor([0, 1, 0, 1])
    head = NearestMean()
    memory = head.new_memory(1).update(features, labels)
    table = head.calibration_table(memory, features, labels, parts=2)
    # Without 0 and 1 the means are 9 and 10, without 9 and 10 they are 0 and 1.
    assert table.correct[0].sum() == 2
    assert (head.fit(memory).predict(features) == labels).sum() == 2
    alone = memory.copy().update(torch.tensor([[50.0]]), torch.tensor([2]))
    passed_over = head.calibration_table(alone, torch.tensor([[50.0]]), torch.tensor([2]))
    assert passed_over.samples == 0
    with pytest.raises(ValueError, match="two samples or more"):
        head.calibrate(alone, passed_over)


def test_a_table_lapses_with_the_memory_and_the_head():
    head, (features, labels) = NearestMean(), samples()
    memory = head.new_memory(6).update(features, labels)
    table = head.calibration_table(memory, features, labels)
    head.calibrate(memory.copy(), table)  # the same statistics elsewhere
    with pytest.raises(ValueError, match="does not fit"):
        NearestMean("cosine").calibrate(memory, table)
    memory.update(features[:5], labels[:5])
    with pytest.raises(ValueError, match="lapses when the memory changes"):
        head.calibrate(memory, table)
    with pytest.raises(ValueError, match="does not fit"):
        table + head.calibration_table(memory, features, labels)


def with_prior(mean):
    return BayesianPrototypes(SharedPrior(mean=torch.tensor([mean] + [0.0] * 5), precision=1e-6))


def calibrated(**settings):
    return GaussianCalibrated(epochs=1, per_class=5, **settings)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (calibrated, lambda: calibrated(weight_decay=6e-4)),
        (lambda: Ensemble([LinearDiscriminant(0.1)]), lambda: Ensemble([LinearDiscriminant(0.11)])),
        (
            lambda: Ensemble([NearestMean()]),
            lambda: Ensemble([NearestMean(dtype=torch.float64)]),
        ),
        (HEADS["fecam_low_rank"], lambda: Mahalanobis(covariance="low_rank", rank=4)),
        (lambda: with_prior(0.0), lambda: with_prior(1e-3)),
    ],
    ids=["descent", "member", "dtype_of_a_member", "rank", "prior"],
)
def test_a_table_lapses_with_any_setting(make, other):
    head, batch = make(), samples(40)
    memory = head.new_memory(6).update(*batch)
    table = head.calibration_table(memory, *batch, parts=2)
    make().calibrate(memory, table)
    copied = pickle.loads(pickle.dumps(make()))
    copied.calibrate(memory, table)
    changed = other()
    assert changed.calibration_table(memory, *batch, parts=2).start == table.start
    with pytest.raises(ValueError, match="does not fit"):
        changed.calibrate(memory, table)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("counts", lambda array: array[:-1], "shapes"),
        ("losses", lambda array: [-1] * len(array), "< 0"),
        ("correct", lambda array: [[10**6] * len(row) for row in array], "more right answers"),
    ],
)
def test_a_damaged_table_is_refused(name, spoil, message):
    state = CalibrationTable.of(torch.eye(3), torch.arange(3), start=0).to_dict()
    state[name] = spoil(state[name])
    with pytest.raises(ValueError, match=message):
        CalibrationTable.from_dict(state)


def test_what_is_asked_too_early_or_of_too_little_is_refused_by_name():
    head, (features, labels) = NearestMean(), samples()
    memory = head.new_memory(6).update(features, labels)
    with pytest.raises(NotFittedError, match="calibrate"):
        head.fit(memory).predict_proba(features)
    with pytest.raises(ValueError, match="calibrated=True"):
        head.calibrate(memory)
    with pytest.raises(ValueError, match="calibrated=True"):
        BayesianPrototypes().calibrate(PrototypeMemory(6, "diagonal").update(features, labels))
    single = head.new_memory(6, calibrated=True).update(features[:5], labels[:5])
    with pytest.raises(ValueError, match="no scatter within classes"):
        head.calibrate(single)
    with pytest.raises(ValueError, match="parts=1"):
        head.calibration_table(memory, features, labels, parts=1)
    with pytest.raises(TypeError, match="CalibrationTable"):
        CalibrationTable.of(torch.eye(2), torch.arange(2), start=0) + 1
    full = head.new_memory(6, calibrated=True).update(features, labels)
    head.calibrate(full).fit(full.update(features, labels))
    with pytest.raises(NotFittedError, match="these statistics"):
        head.predict_proba(features)


def test_running_statistics_are_calibrated_by_what_they_keep():
    head, (features, labels) = LinearDiscriminant(streaming=True), samples()
    memory = head.new_memory(6).update(features, labels)
    chances = head.calibrate(memory).predict_proba(features[:0])
    assert chances.shape == (0, CLASSES)
    with pytest.raises(ValueError, match="order of samples"):
        head.calibration_table(memory, features, labels)


# -- corners --------------------------------------------------------------------------------


@every_head
def test_one_class_is_certain(make):
    head, (features, labels) = small(make), samples()
    only = labels == 10
    memory = remembered(head, (features[only], labels[only]))
    assert head.calibrate(memory).predict_proba(features).eq(1).all()


def test_samples_without_scatter_are_no_surer_than_their_number_allows():
    features = torch.eye(2).repeat(3, 1)
    head = NearestMean()
    memory = head.new_memory(2, calibrated=True).update(features, torch.tensor([0, 1] * 3))
    chances = head.calibrate(memory).predict_proba(torch.eye(2))
    assert chances.max() <= 7 / 8 + 1e-9


def test_equal_logits_share_the_probability():
    table = CalibrationTable.of(torch.eye(2).repeat(50, 1), torch.arange(100) % 2, start=0)
    found = probabilities(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), fit_calibration(table, 100))
    assert found[0].tolist() == [0.5, 0.5]
    assert found[1, 0] > 0.9


def test_answers_that_say_nothing_get_the_share_of_right_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 2, generator=generator)
    rows = torch.arange(4000) % 2
    table = CalibrationTable.of(logits, rows, start=0)
    sure = probabilities(logits, fit_calibration(table, 4000)).max(1).values
    torch.testing.assert_close(sure, torch.full_like(sure, 0.5), rtol=0, atol=0.1)


@pytest.mark.parametrize("make", [NearestMean, Ridge])
def test_it_works_where_the_memory_is(make):
    head, (features, labels) = make(), samples(60)
    memory = remembered(head, (features, labels))
    table = head.calibration_table(memory, features, labels, parts=2)
    expected = [head.calibrate(memory, t).predict_proba(features) for t in (None, table)]
    with second_device() as device:
        far, queries = memory.copy().to(device), features.to(device)
        other = make()
        found = [
            other.calibrate(far, t).predict_proba(queries)
            for t in (None, other.calibration_table(far, queries, labels.to(device), parts=2))
        ]
        assert all(chances.device == device for chances in found)
        near = [chances.cpu() for chances in found]
    for chances, wanted in zip(near, expected, strict=True):
        torch.testing.assert_close(chances, wanted, rtol=0, atol=1e-3)


def test_equal_mass_bins_hold_equally_many_samples():
    sure = torch.tensor([0.1, 0.2, 0.6, 0.7])
    right = torch.tensor([False, False, True, True])
    assert equal_mass_error(sure, right, n_bins=2) == pytest.approx((0.3 + 0.7) / 4)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        equal_mass_error([1.5], [True])


@given(
    logits=st.lists(
        st.lists(st.sampled_from([0.0, 1e-20, -1e-20, 1e-9, 3.0, 3.0 + 4e-16, -1e30]), min_size=3,
                 max_size=3), min_size=1, max_size=5,
    ),
    beta=st.floats(1e-6, 1e3),
    slope=st.floats(0, 2),
    offset=st.floats(-4, 4),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_most_probable_class_is_the_first_of_the_best_scores(logits, beta, slope, offset):
    scores = torch.tensor(logits, dtype=torch.float64)
    chances = probabilities(scores, Calibration(beta, slope, offset, 0.999))
    assert torch.equal(chances.argmax(1), scores.argmax(1))
    torch.testing.assert_close(chances.sum(1), torch.ones(len(scores), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_of_samples_between_two_classes_are_the_most_probable(dtype):
    """Of mirrored classes samples have scores that differ in their last digits, or not at all."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(60, 6, generator=generator)
    features = torch.cat([half, -half])
    labels = torch.arange(2).repeat_interleave(60)
    between = torch.randn(500, 6, generator=generator).cumsum(0) * 1e-9
    for make in (LinearDiscriminant, NearestMean, BayesianPrototypes):
        head = make(dtype=dtype)
        memory = head.new_memory(6, calibrated=True).update(features, labels)
        chances = head.calibrate(memory).predict_proba(between.to(dtype))
        assert torch.equal(head.classes[chances.argmax(1)], head.predict(between.to(dtype)))
        if isinstance(head, BayesianPrototypes):
            chances = head.probabilities(between.to(dtype))
            assert torch.equal(head.classes[chances.argmax(1)], head.predict(between.to(dtype)))
