from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin

from protocl import PrototypeMemory
from protocl.data import TensorData
from protocl.errors import NotFittedError
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.strategies import InMemory, PrototypePlugin
from protocl.strategies.plugin.feature_buffer import MOST_SAMPLES
from tests.strategies.small import (
    STRATEGIES,
    build_net,
    build_strategy,
    freeze,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)


def reference(model: Any, data: TensorData) -> PrototypeMemory:
    """Statistics of ``data`` under the model as it is, computed without Avalanche."""
    model.eval()
    with torch.no_grad():
        return PrototypeMemory(16).update(model.features(data.x), data.y)


@pytest.mark.parametrize(
    "head",
    [NearestMean(metric="cosine"), LinearDiscriminant(), Mahalanobis(), Ridge(projection=40)],
)
def test_the_answer_is_that_of_the_head_on_the_memory(
    benchmark: Any, test_data: TensorData, head: Any
) -> None:
    plugin = PrototypePlugin(head)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    logits = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    with torch.no_grad():
        features = strategy.model.eval().features(test_data.x)
    rows = torch.cat([torch.tensor(_rows(e.dataset, test_data)) for e in benchmark.test_stream])
    expected = head.fit(plugin.memory).dense_logits(features[rows], 6)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def _rows(dataset: Any, data: TensorData) -> list[int]:
    """Where the samples of an experience are in the whole data."""
    return [int((data.x - sample[0]).abs().flatten(1).sum(1).argmin()) for sample in dataset]


def test_metrics_and_loss_see_the_answer(benchmark: Any) -> None:
    strategy = build_strategy(
        "naive", [PrototypePlugin()], evaluator=quiet_evaluator(accuracy_metrics(stream=True))
    )
    train_on(strategy, benchmark.train_stream)
    logits = outputs_at_eval(strategy, benchmark.test_stream)
    metrics = strategy.eval(benchmark.test_stream)
    labels = torch.tensor([y for e in benchmark.test_stream for y in e.dataset.targets])
    right = (torch.cat(logits).argmax(1) == labels).double().mean()
    assert metrics["Top1_Acc_Stream/eval_phase/test_stream/Task000"] == pytest.approx(float(right))


def test_on_frozen_features_it_remembers_what_the_models_own_head_forgets(benchmark: Any) -> None:
    accuracies = []
    for plugins in ([], [PrototypePlugin()]):
        net = freeze(build_net(features=64))
        strategy = build_strategy(
            "naive",
            plugins,
            net,
            train_epochs=5,
            evaluator=quiet_evaluator(accuracy_metrics(stream=True)),
        )
        train_on(strategy, benchmark.train_stream)
        accuracies += strategy.eval(benchmark.test_stream).values()
    own, prototypes = accuracies
    assert own < 0.5
    assert prototypes > 0.85


def test_the_extra_pass_uses_the_model_as_it_is_after_the_experience(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:1])
    first = benchmark.train_stream[0].dataset
    x, y = torch.stack([s[0] for s in first]), torch.tensor([s[1] for s in first])
    expected = reference(strategy.model, TensorData(x, y))
    assert plugin.memory is not None
    torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-5, atol=1e-6)


def test_training_again_on_the_same_experience_replaces_what_it_contributed(
    benchmark: Any,
) -> None:
    plugin = PrototypePlugin(LinearDiscriminant())
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:1])
    old = plugin.memory
    assert old is not None
    old = old.copy()
    train_on(strategy, [benchmark.train_stream[1]] * 3)
    newest = PrototypePlugin(LinearDiscriminant())
    newest.refresh(strategy, [benchmark.train_stream[1].dataset])
    assert newest.memory is not None
    expected = old + newest.memory
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means)
    torch.testing.assert_close(plugin.memory.second_moment, expected.second_moment)


def test_other_samples_of_the_same_classes_are_added(
    benchmark: Any, train_data: TensorData
) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    mirrored = TensorData(train_data.x.flip(-1), train_data.y)  # equal sums of pixels
    for data in (train_data, mirrored):
        strategy.experience = SimpleNamespace(dataset=as_classification_dataset(data))
        plugin.after_training_exp(strategy)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, 2 * torch.bincount(train_data.y))


def test_a_memory_that_was_changed_in_between_is_added_to(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:1])
    assert plugin.memory is not None
    plugin.memory.forget(plugin.memory.classes[:1])
    train_on(strategy, benchmark.train_stream[:1])
    assert sorted(plugin.memory.classes.tolist()) == sorted(
        benchmark.train_stream[0].classes_in_this_experience
    )


def test_refresh_computes_the_memory_anew_from_a_replay_buffer(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    strategy = build_strategy("replay", [plugin])
    train_on(strategy, benchmark.train_stream)
    (replay,) = (p for p in strategy.plugins if hasattr(p, "storage_policy"))
    buffer = replay.storage_policy.buffer
    plugin.refresh(strategy, [buffer])
    x, y = torch.stack([s[0] for s in buffer]), torch.tensor([s[1] for s in buffer])
    expected = reference(strategy.model, TensorData(x, y))
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-5, atol=1e-6)


def test_in_the_training_pass_replayed_samples_of_old_classes_are_left_out(
    benchmark: Any, train_data: TensorData
) -> None:
    plugin = PrototypePlugin(collect="training")
    train_on(build_strategy("replay", [plugin]), benchmark.train_stream)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, torch.bincount(train_data.y))


def test_the_training_pass_is_flushed_in_parts(benchmark: Any) -> None:
    one = benchmark.train_stream[0].dataset
    copies = MOST_SAMPLES // len(one) + 2
    data = TensorData(
        torch.stack([s[0] for s in one]).repeat(copies, 1, 1, 1),
        torch.tensor([s[1] for s in one]).repeat(copies),
    )
    large = nc_benchmark(data, data, n_experiences=1, task_labels=False)
    plugin = PrototypePlugin(collect="training")
    train_on(build_strategy("naive", [plugin]), large.train_stream)
    assert plugin.memory is not None
    assert plugin.memory.total == len(data)


def test_early_stopping_before_the_epoch_that_collects_makes_an_extra_pass(benchmark: Any) -> None:
    class StopEarly(SupervisedPlugin):
        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            strategy.stop_training()

    plugin = PrototypePlugin(collect="training")
    train_on(build_strategy("naive", [plugin, StopEarly()]), benchmark.train_stream[:1])
    assert plugin.memory is not None
    assert plugin.memory.total == len(benchmark.train_stream[0].dataset)


class StopAfter(SupervisedPlugin[Any]):
    """Stops in the third mini-batch of each epoch; before that it may evaluate."""

    def __init__(self, evaluates: Any = None) -> None:
        super().__init__()
        self.evaluates = evaluates

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.evaluates is not None:
            strategy.eval(self.evaluates)
        if strategy.clock.train_epoch_iterations == 2:
            strategy.stop_training()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("head", [NearestMean(), LinearDiscriminant()])
@pytest.mark.parametrize("lean", [False, True])
def test_an_epoch_of_collection_that_is_cut_short_is_made_up_for_by_an_extra_pass(
    benchmark: Any, train_data: TensorData, exact: bool, evaluates: bool, head: Any, lean: bool
) -> None:
    plugin = PrototypePlugin(head, collect="training", exact=exact)
    stop = StopAfter(benchmark.test_stream if evaluates else None)
    model = freeze(build_net())
    others = [InMemory()] if lean else []
    strategy = build_strategy("naive", [plugin, stop, *others], model, train_epochs=1)
    for experience in benchmark.train_stream:
        size = len(experience.dataset)
        strategy._stop_training = False  # Avalanche leaves it set when the last epoch was stopped
        with pytest.warns(UserWarning, match=f"after 54 samples.*all {size} samples"):
            strategy.train(experience)
    expected = reference(strategy.model, train_data)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means, rtol=1e-4, atol=1e-4)


def test_avalanche_s_early_stopping_in_mid_epoch_leaves_no_class_out(benchmark: Any) -> None:
    name = f"{benchmark.test_stream.name}_stream"
    stopping = EarlyStoppingPlugin(1, name, peval_mode="iteration")
    plugin = PrototypePlugin(collect="training")
    strategy = build_strategy(
        "naive",
        [plugin, stopping],
        train_epochs=1,
        eval_every=1,
        peval_mode="iteration",
        evaluator=quiet_evaluator(accuracy_metrics(stream=True)),
    )
    with pytest.warns(UserWarning, match="read in an extra pass instead"):
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert plugin.memory is not None
    assert plugin.memory.total == len(benchmark.train_stream[0].dataset)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_epoch_that_ran_to_its_end_is_not_made_up_for(benchmark: Any, name: str) -> None:
    plugin = PrototypePlugin(collect="training")
    strategy = build_strategy(name, [plugin], train_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience)
    assert not [w for w in caught if "extra pass" in str(w.message)]


def test_evaluation_during_training_does_not_disturb_the_collection(
    benchmark: Any, train_data: TensorData
) -> None:
    plugin = PrototypePlugin(collect="training")
    strategy = build_strategy("naive", [plugin], eval_every=1)
    train_on(strategy, benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, torch.bincount(train_data.y))


def test_an_evaluation_in_mid_epoch_answers_from_all_samples_seen_so_far(benchmark: Any) -> None:
    seen = []

    class EvaluateEachIteration(SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            strategy.eval(benchmark.test_stream)
            seen.append(plugin.memory.total)

    plugin = PrototypePlugin(collect="training")
    strategy = build_strategy("naive", [plugin, EvaluateEachIteration()], train_epochs=1)
    train_on(strategy, benchmark.train_stream[:1])
    samples = len(benchmark.train_stream[0].dataset)
    assert seen == [*range(18, samples, 18), samples]


def test_wide_features_are_flushed_before_many_bytes_wait(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocl.strategies.plugin.feature_buffer.MOST_ELEMENTS", 16 * 40)
    updates = []
    update = PrototypeMemory.update

    def noted(memory: PrototypeMemory, features: Any, labels: Any) -> PrototypeMemory:
        updates.append(len(labels))
        return update(memory, features, labels)

    monkeypatch.setattr(PrototypeMemory, "update", noted)
    plugin = PrototypePlugin(collect="training")
    train_on(build_strategy("naive", [plugin]), benchmark.train_stream[:1])
    samples = len(benchmark.train_stream[0].dataset)
    assert updates[:-1] == [36] * (len(updates) - 1)  # three mini-batches of 18 exceed 40 samples
    assert sum(updates) == samples


def test_a_memory_from_elsewhere_is_continued(benchmark: Any) -> None:
    elsewhere = PrototypeMemory(16).update(torch.rand(7, 16), torch.full((7,), 40))
    plugin = PrototypePlugin(memory=elsewhere)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    assert plugin.memory is elsewhere
    assert elsewhere.classes.tolist() == [0, 1, 2, 3, 4, 5, 40]
    assert outputs_at_eval(strategy, benchmark.test_stream)[0].shape[1] == 41


def test_a_second_model_does_not_add_to_the_first_one_s_statistics_unsaid(benchmark: Any) -> None:
    plugin = PrototypePlugin()

    def complaints(strategy: Any, experience: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy.train(benchmark.train_stream[experience], num_workers=0)
        return [str(w.message) for w in caught if "another model" in str(w.message)]

    first = build_strategy("naive", [plugin])
    assert not complaints(first, 0)
    assert not complaints(first, 1)
    twin = copy.deepcopy(first)  # its plugin belongs to its model
    assert not complaints(twin, 0)
    del first
    (complaint,) = complaints(build_strategy("naive", [plugin]), 0)
    assert "plugin.memory = None" in complaint
    plugin.memory = None
    assert not complaints(build_strategy("naive", [plugin]), 0)


def test_a_higher_level_serves_another_head_later(benchmark: Any) -> None:
    plugin = PrototypePlugin(NearestMean(), level="shared")
    train_on(build_strategy("naive", [plugin]), benchmark.train_stream)
    logits = LinearDiscriminant().fit(plugin.memory)(torch.rand(3, 16))
    assert logits.shape == (3, 6)


class TestTasksWhoseClassIdsStartAtZero:
    @pytest.fixture
    def zero_based(self, train_data: TensorData, test_data: TensorData) -> Any:
        return nc_benchmark(
            train_data,
            test_data,
            n_experiences=3,
            task_labels=True,
            seed=0,
            class_ids_from_zero_in_each_exp=True,
        )

    def test_sharing_a_prototype_is_warned_about(self, zero_based: Any) -> None:
        strategy = build_strategy("naive", [PrototypePlugin()])
        strategy.train(zero_based.train_stream[0])
        with pytest.warns(UserWarning, match="class 0 of task 1 was seen under task 0.*per_task"):
            strategy.train(zero_based.train_stream[1])

    @pytest.mark.parametrize("collect", ["extra_pass", "training"])
    def test_per_task_keeps_them_apart(self, zero_based: Any, collect: Any) -> None:
        accuracies = []
        for per_task in (False, True):
            net = freeze(build_net(features=64))
            plugin = PrototypePlugin(per_task=per_task, collect=collect)
            strategy = build_strategy(
                "naive", [plugin], net, evaluator=quiet_evaluator(accuracy_metrics(experience=True))
            )
            train_on(strategy, zero_based.train_stream)
            results = strategy.eval(zero_based.test_stream).values()
            accuracies.append(sum(results) / len(results))
        assert accuracies[1] > accuracies[0] + 0.05
        assert plugin.memory is not None
        assert len(plugin.memory) == 6


def test_before_the_first_features_there_are_no_logits() -> None:
    with pytest.raises(NotFittedError, match="train an experience first"):
        PrototypePlugin().logits(torch.rand(2, 16))


def test_an_empty_state_loads(benchmark: Any) -> None:
    plugin = PrototypePlugin()
    train_on(build_strategy("naive", [plugin]), benchmark.train_stream[:1])
    plugin.load_state_dict(PrototypePlugin().state_dict())
    assert plugin.memory is None


def test_an_unknown_way_to_collect_is_refused() -> None:
    with pytest.raises(ValueError, match="collect='never': expected 'extra_pass' or 'training'"):
        PrototypePlugin(collect="never")  # type: ignore[arg-type]


def test_what_is_no_head_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a head, such as NearestMean"):
        PrototypePlugin("nearest_mean")  # type: ignore[arg-type]
