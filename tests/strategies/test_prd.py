"""PRD as a plugin of any host: laws, growth, resumption, prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import LRSchedulerPlugin
from torch.optim import lr_scheduler

from protocl import PrototypeMemory
from protocl.data import TensorData
from protocl.strategies import InMemory
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.prd import PRD, PRDPlugin, build_projector
from protocl.strategies.training.relation_losses import PRDLoss
from protocl.strategies.training.views import AugmentedViews, DatasetViews
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    assert_equal_weights,
    build_net,
    build_strategy,
    freeze,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
    weights_of,
)


def build_plugin(**settings: Any) -> PRDPlugin:
    """With a small projector and noise as augmentation."""
    torch.manual_seed(7)
    settings.setdefault("views", AugmentedViews(lambda x: x + 0.1 * torch.randn_like(x)))
    return PRDPlugin(projector=build_projector(16, 16, 8), **settings)


class Before:
    """Stands in front of a plugin and keeps the mini-batch as the plugin finds it."""

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.batch = [part.clone() for part in strategy.mbatch]


class After:
    """Stands behind a plugin and checks that the mini-batch is again what it was."""

    def __init__(self, before: Before) -> None:
        self.snapshot = before

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        assert len(strategy.mb_output) == len(strategy.mb_y)
        for now, then in zip(strategy.mbatch, self.snapshot.batch, strict=True):
            assert torch.equal(now, then)
        assert all(not m._forward_pre_hooks for m in strategy.model.modules())


def watched(plugin: PRDPlugin) -> list[Any]:
    before = Before()
    return [before, plugin, After(before)]


@pytest.mark.parametrize("host", ["naive", "replay", "lwf", "ewc", "si"])
def test_trains_inside_any_host_and_leaves_the_mini_batch_as_it_was(benchmark, host):
    plugin = build_plugin()
    strategy = build_strategy(host, watched(plugin))
    train_on(strategy, benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert plugin.prototypes.rows.ids.sort().values.tolist() == list(range(6))
    assert plugin.last_terms.relation > 0
    assert plugin.last_terms.total.isfinite()


def test_a_host_that_adds_samples_behind_the_views_is_refused(benchmark):
    strategy = build_strategy("der", [build_plugin()])
    with pytest.raises(RuntimeError, match=r"DER added samples .* such as Replay"):
        train_on(strategy, benchmark.train_stream)


def test_on_the_new_benchmark_api(new_benchmark):
    plugin = build_plugin()
    strategy = build_strategy("naive", watched(plugin))
    train_on(strategy, new_benchmark.train_stream)
    outputs = torch.cat(outputs_at_eval(strategy, new_benchmark.test_stream))
    assert torch.isfinite(outputs).all()


def test_served_from_memory_it_trains_to_the_same_weights(benchmark):
    models = []
    for others in ([], [InMemory()]):
        strategy = build_strategy("naive", [build_plugin(), *others])
        train_on(strategy, benchmark.train_stream[:2])
        models.append(strategy.model)
    assert_equal_weights(*models)


def test_without_the_hosts_loss_its_classifier_does_not_move(benchmark):
    strategy = build_strategy("naive", [build_plugin()])
    before = weights_of(strategy.model.classifier)
    train_on(strategy, benchmark.train_stream[:1])
    assert_equal_weights(before, strategy.model.classifier)


def test_with_the_hosts_loss_it_does(benchmark):
    strategy = build_strategy("naive", [build_plugin(host_loss=0.5)])
    before = weights_of(strategy.model.classifier)
    train_on(strategy, benchmark.train_stream[:1])
    assert not torch.equal(before["weight"], strategy.model.classifier.weight)


def own_group(plugin: PRDPlugin) -> dict[str, Any]:
    (group,) = plugin._optimizer.optimizer.param_groups
    return group


class Rates:
    """Learning rates of the model and the prototypes in each epoch's last step."""

    def __init__(self, plugin: PRDPlugin) -> None:
        self.plugin = plugin
        self.rates: list[tuple[float, float]] = []

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        (model,) = strategy.optimizer.param_groups
        self.rates.append((model["lr"], own_group(self.plugin)["lr"]))


SCHEDULERS = {
    "milestones": lambda sgd: lr_scheduler.MultiStepLR(sgd, [1, 2], 0.5),
    "lambda": lambda sgd: lr_scheduler.LambdaLR(sgd, lambda epoch: 0.5**epoch),
    "cosine": lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 3),
    "warm-up": lambda sgd: lr_scheduler.OneCycleLR(sgd, 4.0, total_steps=20),
    "cyclic": lambda sgd: lr_scheduler.CyclicLR(sgd, 0.1, 4.0, cycle_momentum=False),
    "plateau": lambda sgd: lr_scheduler.ReduceLROnPlateau(sgd, patience=0),
}


class TestOptimizer:
    def test_prototypes_have_an_optimizer_without_momentum_and_decay(self, benchmark):
        plugin = build_plugin(prototype_lr=0.3)
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, benchmark.train_stream)
        (first,) = strategy.optimizer.param_groups
        group = own_group(plugin)
        assert [id(p) for p in group["params"]] == [id(p) for p in plugin.prototypes.parts]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0, 0)
        assert first["momentum"] == 0.9
        trained = {id(p) for p in first["params"]}
        assert {id(p) for p in plugin.projector.parameters()} <= trained

    def test_momentum_of_the_model_survives_the_boundary(self, benchmark):
        plugin = build_plugin()
        strategy = build_strategy("naive", [plugin])
        weight = next(strategy.model.parameters())
        train_on(strategy, benchmark.train_stream[:1])
        state = strategy.optimizer.state[weight]["momentum_buffer"].clone()
        seen = []

        class Look:
            def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
                seen.append(strategy.optimizer.state[weight]["momentum_buffer"].clone())

        strategy.plugins.append(Look())
        train_on(strategy, benchmark.train_stream[1:2])
        assert torch.equal(seen[0], state)

    def test_with_adam(self, benchmark):
        net = build_net()
        adam = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=0.1)
        plugin = build_plugin()
        strategy = build_strategy("naive", [plugin], net, optimizer=adam)
        train_on(strategy, benchmark.train_stream)
        assert own_group(plugin)["weight_decay"] == 0
        steps = [
            plugin._optimizer.optimizer.state[part]["step"] for part in plugin.prototypes.parts
        ]
        assert steps[0] > steps[1] > steps[2]  # their moments survive the boundary

    def test_schedule_keeps_the_ratio_of_the_rates(self, benchmark):
        plugin = build_plugin(prototype_lr=0.01)
        schedule = EpochSchedule(first_experience_epochs=3, milestones=[1])
        look = Rates(plugin)
        strategy = build_strategy("naive", [plugin, schedule, look])
        train_on(strategy, benchmark.train_stream[:2])
        expected = [(0.05, 0.01), (0.05, 0.01), (0.005, 0.001), (0.05, 0.01), (0.05, 0.01)]
        torch.testing.assert_close(torch.tensor(look.rates), torch.tensor(expected))

    @pytest.mark.parametrize("prototype_lr", [None, 2.0])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_schedulers_made_before_reach_the_prototypes(self, benchmark, name, prototype_lr):
        plugin, net = build_plugin(prototype_lr=prototype_lr), build_net()
        sgd = torch.optim.SGD(net.parameters(), lr=4.0)
        scheduler, look = SCHEDULERS[name](sgd), Rates(plugin)
        metric = "train_loss" if name == "plateau" else None
        plugins = [plugin, look, LRSchedulerPlugin(scheduler, metric=metric)]
        strategy = build_strategy("naive", plugins, net, optimizer=sgd, train_epochs=3)
        train_on(strategy, benchmark.train_stream[:2])
        model, own = torch.tensor(look.rates).T
        start = sgd.param_groups[0]["initial_lr"]
        torch.testing.assert_close(own, model * (prototype_lr or start) / start)
        if name == "milestones":
            assert model.tolist() == [4.0, 2.0, 1.0] * 2


def test_experiences_of_different_sizes_in_any_order_of_classes(train_data, test_data):
    stream = nc_benchmark(
        train_data, test_data, 3, task_labels=False,
        fixed_class_order=[5, 0, 3, 2, 4, 1], per_exp_classes={0: 1, 1: 3, 2: 2},
    )  # fmt: skip
    plugin = build_plugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, stream.train_stream)
    assert plugin.prototypes.rows.ids.tolist() == [5, 0, 2, 3, 1, 4]
    assert plugin.prototypes.experiences.tolist() == [0, 1, 1, 1, 2, 2]


def test_a_class_that_comes_back_keeps_its_prototype(benchmark):
    plugin = build_plugin()
    strategy = build_strategy("naive", [plugin])
    first = benchmark.train_stream[0]
    train_on(strategy, [first])
    before = plugin.prototypes.table().detach().clone()
    train_on(strategy, [first])
    assert len(plugin.prototypes) == 2
    assert plugin.last_terms.relation > 0
    assert not torch.equal(plugin.prototypes.table(), before)


class TestTeacher:
    def relation_after(self, benchmark: Any, **settings: Any) -> tuple[PRDPlugin, list[Any]]:
        plugin = build_plugin(**settings)
        buffers: list[Any] = []

        class Look:
            def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
                if plugin._teacher is not None:
                    buffers.append(weights_of(plugin._teacher.model))

        strategy = build_strategy("naive", [plugin, Look()])
        train_on(strategy, benchmark.train_stream[:2])
        return plugin, buffers

    def test_stays_as_it_was_in_evaluation_mode(self, benchmark):
        plugin, (first, second) = self.relation_after(benchmark)
        assert_equal_weights(first, second)
        assert plugin._teacher is None, "the copy is dropped when the experience ends"

    def test_drifts_in_training_mode_as_the_released_code_does(self, benchmark):
        _, (first, second) = self.relation_after(benchmark, teacher_mode="train")
        assert not torch.equal(first["features.2.running_mean"], second["features.2.running_mean"])

    def test_first_step_after_the_boundary_has_nothing_to_distil(self, benchmark):
        terms: dict[int, list[float]] = {0: [], 1: []}

        class Look:
            def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
                relation = float(plugin.last_terms.relation)
                terms[strategy.clock.train_exp_counter].append(relation)

        # Evaluation mode throughout, so that student and teacher are the same function.
        net = build_net().eval()
        net.train = lambda mode=True: net  # type: ignore[method-assign]
        plugin = build_plugin(loss=PRDLoss(relation_temperature=0.05))
        strategy = build_strategy("naive", [plugin, Look()], net)
        train_on(strategy, benchmark.train_stream[:2])
        assert set(terms[0]) == {0.0}
        assert terms[1][0] == 0.0
        assert terms[1][-1] > 0

    def test_released_preset(self):
        plugin = PRDPlugin.released()
        assert plugin.loss == PRDLoss(relation="released", relation_temperature=1.0)
        assert plugin.teacher_mode == "train"


class TestPrediction:
    def test_before_training_the_model_answers_itself(self, benchmark):
        plain = build_strategy("naive", [])
        strategy = build_strategy("naive", [build_plugin()])
        found = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
        assert torch.equal(found, torch.cat(outputs_at_eval(plain, benchmark.test_stream)))

    def test_only_classes_that_were_seen_win(self, benchmark):
        strategy = build_strategy("naive", [build_plugin()])
        train_on(strategy, benchmark.train_stream[:1])
        classes = set(benchmark.train_stream[0].classes_in_this_experience)
        outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
        assert set(outputs.argmax(1).tolist()) <= classes

    def test_a_task_label_restricts_the_answer_to_its_classes(self, task_benchmark):
        strategy = build_strategy("naive", [build_plugin()])
        train_on(strategy, task_benchmark.train_stream)
        for experience in task_benchmark.test_stream:
            outputs = torch.cat(outputs_at_eval(strategy, [experience]))
            classes = set(experience.classes_in_this_experience)
            assert set(outputs.argmax(1).tolist()) <= classes

    def test_class_ids_that_start_at_zero_in_each_task(self, train_data, test_data):
        stream = nc_benchmark(
            train_data, test_data, 3, task_labels=True, seed=0,
            class_ids_from_zero_in_each_exp=True,
        )  # fmt: skip
        net = MTSimpleMLP(input_size=64, hidden_size=16)
        plugin = build_plugin(per_task=True)
        strategy = build_strategy("naive", watched(plugin), net)
        train_on(strategy, stream.train_stream)
        assert len(plugin.prototypes) == 6
        outputs = torch.cat(outputs_at_eval(strategy, stream.test_stream))
        assert set(outputs.argmax(1).tolist()) == {0, 1}

    def test_it_learns_tasks_without_forgetting_them(self, task_benchmark):
        torch.manual_seed(0)
        net = build_net(features=32)
        strategy = PRD(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
            plugin=PRDPlugin(
                views=AugmentedViews(lambda x: x + 0.1 * torch.randn_like(x)),
                projector=build_projector(32, 32, 16),
            ),
            train_mb_size=32,
            train_epochs=10,
            evaluator=quiet_evaluator(),
        )
        train_on(strategy, task_benchmark.train_stream)
        answers = [
            (
                torch.cat(outputs_at_eval(strategy, [e])).argmax(1),
                torch.tensor(list(e.dataset.targets)),
            )
            for e in task_benchmark.test_stream
        ]
        accuracies = [float((found == true).float().mean()) for found, true in answers]
        assert min(accuracies) > 0.85


class TestState:
    def test_a_checkpoint_continues_bit_for_bit(self, benchmark, tmp_path: Path):
        strategy = build_strategy("replay", [build_plugin()])
        assert_continues_bit_for_bit(strategy, benchmark, tmp_path)

    def test_state_dict_holds_tensors_and_numbers_only(self, task_benchmark, tmp_path: Path):
        plugin = build_plugin()
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, task_benchmark.train_stream)
        torch.save(plugin.state_dict(), tmp_path / "a")
        fresh = build_plugin()
        fresh.load_state_dict(torch.load(tmp_path / "a", weights_only=True))
        features = torch.rand(7, 16)
        for found, expected in zip(
            fresh.class_logits(features), plugin.class_logits(features), strict=True
        ):
            assert torch.equal(found, expected)
        assert fresh.tasks.seen == plugin.tasks.seen
        assert_equal_weights(fresh.projector, plugin.projector)

    def test_state_dict_before_training(self):
        plugin = build_plugin()
        plugin.load_state_dict(build_plugin().state_dict())
        assert plugin.class_logits(torch.rand(2, 16)) is None


class TestViews:
    def test_of_the_data_set_are_unfolded_view_by_view(self):
        x = torch.arange(6.0).view(3, 2, 1)
        assert DatasetViews()(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]

    def test_missing_views_are_named(self):
        with pytest.raises(ValueError, match=r"expected \(B, V, \.\.\.\)"):
            DatasetViews()(torch.rand(3, 5))

    def test_of_the_data_set_reach_the_loss(self, train_data, test_data):
        views = torch.stack([train_data.x, train_data.x * 0.9], 1)
        stream = nc_benchmark(
            TensorData(views, train_data.y), test_data, 3, task_labels=False, seed=0
        )
        strategy = build_strategy("naive", watched(build_plugin(views=DatasetViews())))
        train_on(strategy, stream.train_stream[:2])
        assert len(outputs_at_eval(strategy, stream.test_stream)) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_mode": "off"}, "teacher_mode='off': expected 'eval' or 'train'"),
        ({"host_loss": -1}, "host_loss=-1: expected a weight of at least 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        PRDPlugin(**settings)


def test_prototypes_can_start_at_the_means_of_their_classes(benchmark):
    plugin = build_plugin(prototype_init="means")
    net = freeze(build_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    strategy = build_strategy("naive", [plugin], net, optimizer=optimizer)
    train_on(strategy, benchmark.train_stream[:2])
    expected = PrototypeMemory(16)
    for experience in benchmark.train_stream[:2]:
        for _, features, labels, _ in features_of(strategy, experience.dataset):
            expected.update(features, labels)
    rows = plugin.prototypes.rows(expected.classes)
    started = plugin.prototypes.table().detach()[rows].double()
    torch.testing.assert_close(
        started, torch.nn.functional.normalize(expected.means, dim=1), rtol=1e-5, atol=1e-6
    )


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="prototype_init='mean': expected 'random' or 'means'"):
        build_plugin(prototype_init="mean")
