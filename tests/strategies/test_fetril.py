"""FeTrIL: golden relations and pseudo-features, closed form against explicit, in Avalanche."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from protocl import PrototypeMemory
from protocl.heads import LinearDiscriminant, Ridge
from protocl.strategies.fetril import (
    FeTrIL,
    FeTrILPlugin,
    fit_support_vectors,
    linear_form,
    most_similar,
    pseudo_features,
    pseudo_statistics,
)
from tests.golden.ptm import golden, inputs
from tests.strategies.small import (
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)

CASE: dict[str, Any] = golden()["results"]["fetril_task2"]


def old_and_new() -> tuple[PrototypeMemory, PrototypeMemory, Tensor, Tensor]:
    """Means of classes 0 to 3, statistics and samples of classes 4 and 5."""
    data = inputs()
    new = data.experiences[2]
    x, y = data.train[new], data.train_labels[new]
    old = PrototypeMemory(16).update(data.train[~new], data.train_labels[~new])
    return old, PrototypeMemory(16, "full").update(x, y), x, y


def test_most_similar_classes_and_translated_features() -> None:
    old, new, x, y = old_and_new()
    assert new.classes[most_similar(old.means, new.means)].tolist() == CASE["relations"]
    made = pseudo_features(x, y, old.means, new)
    assert [len(part) for part in made] == CASE["pseudo_counts"]
    for label, row in CASE["pseudo_first_row"].items():
        expected = torch.tensor(row, dtype=torch.float64)
        torch.testing.assert_close(made[int(label)][0], expected, rtol=1e-6, atol=1e-8)


def explicit() -> PrototypeMemory:
    """Statistics of pseudo-features that are really made."""
    old, new, x, y = old_and_new()
    memory = PrototypeMemory(16, "shared").update(x, y)
    for label, part in enumerate(pseudo_features(x, y, old.means, new)):
        memory.update(part, torch.full((len(part),), label))
    return memory


def test_statistics_without_features_equal_those_of_the_features() -> None:
    old, new, _, _ = old_and_new()
    closed, summed = pseudo_statistics(old, new), explicit()
    assert torch.equal(closed.classes, summed.classes)
    assert torch.equal(closed.counts, summed.counts)
    torch.testing.assert_close(closed.means, summed.means)
    gap = float((closed.second_moment - summed.second_moment).abs().max())
    assert gap <= 10 * CASE["own_G_from_statistics_max_abs_gap"]


def test_a_class_that_is_also_new_counts_as_new() -> None:
    old, new, x, y = old_and_new()
    old.update(x[:3] + 1, y[:3])
    assert torch.equal(pseudo_statistics(old, new).counts, explicit().counts)


@pytest.mark.parametrize(
    "head", [Ridge(dtype=torch.float64), LinearDiscriminant(dtype=torch.float64)]
)
def test_scores_are_those_of_the_head(head: Any) -> None:
    head.fit(explicit())
    scores = linear_form(head, 16)
    test = inputs().test
    torch.testing.assert_close(scores(test).double(), head(test), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_support_vectors_are_those_of_scikit_learn(classes: int) -> None:
    data = inputs()
    mine = data.train_labels < classes
    x, y = data.train[mine], 3 * data.train_labels[mine]
    scores = fit_support_vectors(x, y, c=0.5)
    unit = torch.nn.functional.normalize(x, dim=1).numpy()
    machine = LinearSVC(C=0.5, dual=False).fit(unit, y.numpy())
    predicted = scores.classes[scores(x).argmax(1)]
    assert predicted.tolist() == machine.predict(unit).tolist()


def fetril(**settings: Any) -> FeTrIL:
    model = build_net(features=32)
    return FeTrIL(
        model=model,
        first_experience_epochs=5,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=18,
        evaluator=quiet_evaluator(),
        **settings,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"head": Ridge(dtype=torch.float64)}, {"svm_c": 1.0}],
    ids=["lda", "ridge", "svm"],
)
def test_learns_new_classes_and_keeps_old_ones(benchmark: Any, settings: Any) -> None:
    torch.manual_seed(0)
    strategy = fetril(**settings)
    train_on(strategy, benchmark.train_stream)
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    labels = torch.cat([torch.as_tensor(list(e.dataset.targets)) for e in benchmark.test_stream])
    assert float((logits.argmax(1) == labels).float().mean()) > 0.6
    assert strategy.memory is not None
    assert strategy.memory.level == "mean"
    assert int(strategy.memory.counts.sum()) == 240


def test_unseen_classes_never_win(benchmark: Any) -> None:
    strategy = fetril()
    train_on(strategy, benchmark.train_stream[:1])
    seen = sorted(benchmark.train_stream[0].classes_in_this_experience)
    for logits in outputs_at_eval(strategy, benchmark.test_stream):
        assert logits.isfinite().sum(1).eq(len(seen)).all()
        assert logits[:, seen].isfinite().all()


@pytest.mark.parametrize("svm_c", [None, 1.0])
def test_state_loads_into_a_fresh_plugin(benchmark: Any, svm_c: float | None) -> None:
    strategy = fetril(svm_c=svm_c)
    train_on(strategy, benchmark.train_stream)
    file = io.BytesIO()
    torch.save(strategy.prototypes.state_dict(), file)
    file.seek(0)
    fresh = FeTrILPlugin(svm_c=svm_c)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    features = torch.rand(5, 32)
    assert torch.equal(fresh.logits(features), strategy.prototypes.logits(features))


def test_a_class_may_come_back_and_the_plugin_works_in_other_strategies(benchmark: Any) -> None:
    plugin = FeTrILPlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, [*benchmark.train_stream[:2], benchmark.train_stream[0]])
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream[:2]))
    assert logits.isfinite().sum(1).eq(4).all()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="exact=True"):
        FeTrILPlugin(exact=True)
    with pytest.raises(ValueError, match=r"svm_c=-1\.0"):
        FeTrILPlugin(svm_c=-1.0)


def test_scores_far_from_the_origin_are_those_of_the_head():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 16, generator=generator) + labels[:, None] + 1e4
    head = LinearDiscriminant("auto", dtype=torch.float64)
    head.fit(head.new_memory(16).update(features, labels))
    scores = linear_form(head, 16)
    assert torch.equal(scores(features).argmax(1), head(features).argmax(1))
    torch.testing.assert_close(scores(features), head(features), rtol=1e-3, atol=1e-3)
