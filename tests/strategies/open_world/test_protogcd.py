"""ProtoGCD: its losses against the authors' values, what is hidden from it, and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocl.checks import toy
from protocl.config.compose import load
from protocl.data import Unlabelled
from protocl.strategies.open_world.beside import Beside
from protocl.strategies.open_world.discovery import FIRST_CATEGORY
from protocl.strategies.open_world.protogcd import (
    ProtoGCD,
    ProtoGCDConfig,
    ProtoGCDLoss,
    ProtoGCDPlugin,
)
from protocl.strategies.open_world.self_distillation import (
    certain_share,
    distillation,
    prototype_separation,
    pseudo_labels,
    uneven_use,
)
from protocl.strategies.training.contrastive import contrastive, supervised_contrastive
from protocl.strategies.training.views import named_views
from tests.golden.trained_open_world import assert_close, golden, unit
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    build_strategy,
    quiet_evaluator,
    train_on,
)

NAMED = [0, 1, 2, 3, 8, 9, 10, 11]
LABELS = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])


def given_values() -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``(16, 5)``, prototypes ``(5, 6)`` and projections ``(16, 4)``."""
    rng = np.random.default_rng(401)
    features, prototypes = unit(rng.standard_normal((16, 6))), unit(rng.standard_normal((5, 6)))
    return features @ prototypes.T, prototypes, torch.tensor(rng.standard_normal((16, 4)))


@pytest.mark.parametrize("epoch", ["0", "1", "2", "3", "7"])
def test_distillation_is_that_of_the_authors_code(epoch: str) -> None:
    expected, share = golden("protogcd")["distillation"][epoch], certain_share(int(epoch), 4)
    assert_close(share, expected["ratio"])
    assert_close(distillation(given_values()[0], share), expected["loss"])


def test_gradient_and_ramped_teacher_are_those_of_the_authors_code() -> None:
    logits = given_values()[0].requires_grad_()
    distillation(logits, certain_share(2, 4)).backward()
    assert logits.grad is not None
    assert_close(logits.grad[0], golden("protogcd")["distillation"]["grad_logits_row0_epoch2"])
    ramped = golden("protogcd")["distillation_with_teacher_ramp_epoch2"]
    share = certain_share(2, 4, 0.2)
    assert_close(share, ramped["ratio"])
    teacher = ramped["teacher_temperature"]
    assert_close(distillation(logits, share, teacher_temperature=teacher), ramped["loss"])


def test_all_terms_and_their_sum_are_those_of_the_authors_code() -> None:
    expected, loss = golden("protogcd"), ProtoGCDLoss()
    logits, prototypes, projections = given_values()
    assert_close(uneven_use(logits), expected["entropy_regularisation"])
    assert_close(prototype_separation(prototypes), expected["prototype_separation"])
    assert_close(contrastive(projections), expected["contrastive"])
    named = projections[NAMED]
    supervised = supervised_contrastive(named, LABELS, temperature=0.07, base_temperature=None)
    assert_close(supervised, expected["supervised_contrastive"])
    labelled = loss.of_labelled(logits[NAMED], LABELS, named, LABELS)
    assert_close(labelled - supervised, expected["cross_entropy"])
    taught = loss.of_all(logits, projections, prototypes, certain_share(2, 4))
    assert_close(0.65 * taught + 0.35 * labelled, expected["total_epoch2"]["value"])


def test_the_most_certain_get_hard_labels() -> None:
    logits = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.49, 0.0], [0.0, 0.2, 0.8]])
    targets = pseudo_labels(logits, 0.7)  # two of three
    assert targets[[0, 2]].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert 0 < float(targets[1, 1]) < 1
    assert pseudo_labels(logits[:, :1], 1.0).tolist() == [[1.0]] * 3
    torch.testing.assert_close(pseudo_labels(logits, 0.0).sum(1), torch.ones(3))


def test_corners_of_the_terms() -> None:
    assert_close(uneven_use(torch.zeros(4, 3).double()), 0.0)
    one_for_all = torch.tensor([[100.0, 0.0]] * 4, dtype=torch.float64)
    assert_close(uneven_use(one_for_all), float(np.log(2)))
    assert float(prototype_separation(torch.ones(1, 3))) == 0
    assert [certain_share(epoch, 0) for epoch in range(2)] == [1.0, 1.0]


# -- samples beside a mini-batch --------------------------------------------------------------


def test_each_unlabelled_sample_comes_once_before_any_comes_again() -> None:
    x = torch.arange(7.0)[:, None]
    beside = Beside(
        named_views("copies"), Unlabelled(x, torch.tensor([0, 1, 1, 1, 1, 1, 1]), ()), 1
    )
    beside.begin(1)
    seen = torch.cat([beside(torch.full((4, 1), -1.0))[4:8, 0] for _ in range(3)])
    assert sorted(seen[:6].tolist()) == sorted(seen[6:].tolist()) == [1, 2, 3, 4, 5, 6]
    beside.begin(0)
    assert beside(torch.full((4, 1), -1.0)).flatten().tolist() == [-1, -1, -1, -1, 0] * 2
    beside.begin(5)
    assert len(beside(torch.zeros(4, 1))) == 8  # nothing comes with it


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.3, 1), (1.5, 5), (9.0, 6)])
def test_the_ratio_says_how_many(ratio: float, count: int) -> None:
    x = torch.zeros(6, 2)
    beside = Beside(named_views("copies"), Unlabelled(x, torch.zeros(6).long(), (1,)), ratio)
    beside.begin(0)
    assert len(beside(torch.zeros(3, 2))) == 2 * (3 + count)


# -- the plugin -------------------------------------------------------------------------------


def build(**given: Any) -> ProtoGCD:
    model = toy.model()
    method = ProtoGCDPlugin(unlabelled=toy.unlabelled(), hidden=16, outputs=8, **given)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    return ProtoGCD(
        model=model, optimizer=optimizer, method=method, train_mb_size=12, train_epochs=2,
        evaluator=quiet_evaluator(),
    )  # fmt: skip


def test_a_class_that_nobody_named_is_a_category() -> None:
    torch.manual_seed(0)
    strategy = build()
    strategy.train_epochs = 8
    train_on(strategy, toy.stream().train_stream[:1])
    strategy.train_epochs = 1
    found = strategy.categories(torch.arange(12))
    assert (found == FIRST_CATEGORY).all()
    assert strategy.method.discovered is not None
    assert strategy.method.discovered.counts.tolist() == [12]
    assert strategy.memory is not None  # of named classes alone
    assert strategy.memory.classes.tolist() == [1, 4, 5]
    train_on(strategy, toy.stream().train_stream[1:2])
    assert strategy.method.table is not None
    assert len(strategy.method.table) == 5
    assert len(strategy.method.discovered) == 1


def test_an_experience_again_has_the_same_categories() -> None:
    strategy, stream = build(new_categories=2), toy.stream().train_stream
    train_on(strategy, [stream[0], stream[1], stream[0]])
    assert strategy.method.table is not None
    ids = strategy.method.table.rows.ids.tolist()
    assert ids == [1, 4, 5, FIRST_CATEGORY, FIRST_CATEGORY + 1, 0]


def test_prototypes_may_start_at_the_means_of_their_classes() -> None:
    strategy = build(prototype_init="means")
    strategy.optimizer.param_groups[0]["lr"] = 1e-9
    expected = []

    class Note:
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            expected.append(strategy.method._starts.means)

    strategy.plugins.append(Note())
    strategy.train_epochs = 1
    train_on(strategy, toy.stream().train_stream[:1])
    assert strategy.method.table is not None
    directions = torch.nn.functional.normalize(expected[0], dim=1).float()
    torch.testing.assert_close(strategy.method.table.table()[:3].detach(), directions)


def test_a_stopped_strategy_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    strategy = build()
    strategy.train_epochs = 2
    assert_continues_bit_for_bit(strategy, toy.stream(), tmp_path)


def test_state_on_disk_is_the_plugin() -> None:
    strategy = build()
    strategy.train_epochs = 8
    train_on(strategy, toy.stream().train_stream[:1])
    other = ProtoGCDPlugin(hidden=16, outputs=8)
    other.load_state_dict(strategy.method.state_dict())
    features = torch.rand(5, 16)
    assert torch.equal(other.assigned(features), strategy.method.assigned(features))
    assert other.discovered is not None
    assert torch.equal(other.discovered.means, strategy.method.discovered.means)  # type: ignore[union-attr]


def test_task_labels_and_hosts_that_replay(task_benchmark: Any) -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    x = torch.rand(10, 1, 8, 8)
    for host in ("naive", "replay"):
        plugin = ProtoGCDPlugin(unlabelled=Unlabelled(x, labels, (1, 0, 0)), ratio=0.4)
        strategy = build_strategy(host, [plugin])
        train_on(strategy, task_benchmark.train_stream)
        assert plugin.table is not None
        assert torch.isfinite(plugin.table.table()).all()


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_views_are_refused(count: int) -> None:
    strategy = build(views=named_views("copies", count))
    with pytest.raises(ValueError, match=r"compares two views of each sample, and got"):
        train_on(strategy, toy.stream().train_stream[:1])


def test_unlabelled_samples_of_another_shape_are_refused() -> None:
    method = ProtoGCDPlugin(unlabelled=Unlabelled(torch.rand(3, 5), torch.zeros(3).long(), (1,)))
    strategy = build_strategy("naive", [method], toy.model())
    with pytest.raises(ValueError, match=r"unlabelled samples have shape \(5,\) and those"):
        train_on(strategy, toy.stream().train_stream[:1])


def test_a_run_without_unlabelled_samples_says_so(caplog: pytest.LogCaptureFixture) -> None:
    ProtoGCDConfig().build(toy.setup())
    assert "strategy=protogcd: no sample comes without a label" in caplog.text


@pytest.mark.parametrize("strategy", ["palm", "protogcd", "gpc"])
def test_in_half_precision_and_double(strategy: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        (config,) = load([f"strategy={strategy}", "strategy.train_epochs=2"])
        setup = toy.setup()
        setup.unlabelled = toy.unlabelled()
        if dtype == torch.float64:
            setup.model.backbone.register_forward_pre_hook(lambda _, x: (x[0].double(),))
            setup.model.double()
        else:  # as backbone.precision=bfloat16 gives them
            setup.model.backbone.register_forward_hook(lambda _, x, out: out.bfloat16().float())
        built = config.strategy.build(setup)
        train_on(built, toy.stream().train_stream[:1])
        assert torch.isfinite(built.memory.means).all()
        weights = built.method.projector.parameters()
        assert all(torch.isfinite(weight).all() for weight in weights)


def test_nothing_is_sorted_before_training() -> None:
    strategy = build()
    assert strategy.categories(torch.arange(3)) is None
    strategy.train_epochs = 0
    train_on(strategy, toy.stream().train_stream[:1])
    assert strategy.categories(torch.arange(3)) is None
    assert strategy.method.discovered is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": -1.0}, r"ratio=-1\.0: expected 0 or more"),
        ({"new_categories": -1}, r"new_categories=-1: expected 0 or more"),
        ({"ramp_epochs": -2}, r"ramp_epochs=-2"),
        ({"prototype_init": "zero"}, r"prototype_init='zero'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtoGCDPlugin(**settings)
