"""NAPA-VQ in Avalanche: state, invariants, any class order, inside other strategies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import nn

from protocl.data import BenchmarkConfig, TensorData
from protocl.data.streams import class_order
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.exemplar_free.neural_gas import choose_neighbours, distance_cross_entropy
from protocl.strategies.napa_vq import NAPAVQ, NAPAVQLoss, NAPAVQPlugin
from protocl.strategies.training.distances import squared_distances
from tests.golden.napa_vq import golden, normal
from tests.strategies.small import (
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)


def small_plugin(**settings: Any) -> NAPAVQPlugin:
    return NAPAVQPlugin(NAPAVQLoss(k=4), code_lr=0.1, later_code_lr=0.05, **settings)


@pytest.fixture
def uneven_benchmark(train_data: TensorData, test_data: TensorData) -> Any:
    """Experiences of 3, 1 and 2 classes, in no order."""
    return nc_benchmark(
        train_data,
        test_data,
        n_experiences=3,
        task_labels=False,
        shuffle=False,
        fixed_class_order=[4, 1, 5, 0, 3, 2],
        per_exp_classes={0: 3, 1: 1, 2: 2},
    )


def test_rows_and_frozen_vectors_over_uneven_experiences(uneven_benchmark: Any) -> None:
    plugin = small_plugin()
    strategy = build_strategy("naive", [plugin, InMemory()])
    seen = 0
    for experience, expected in zip(
        uneven_benchmark.train_stream, ([1, 4, 5], [1, 4, 5, 0], [1, 4, 5, 0, 2, 3]), strict=True
    ):
        before = plugin.parameters.codes.detach().clone()
        kept = None if plugin.memory is None else plugin.memory.copy()
        train_on(strategy, [experience])
        assert plugin.kept.rows.ids.tolist() == expected
        codes, edges = plugin.parameters.codes.detach(), plugin.parameters.edges
        assert codes.shape == (4 * len(expected), 16)
        assert edges.shape == (4 * len(expected), 4 * len(expected))
        assert torch.equal(edges, edges.T)
        assert torch.equal(edges.diagonal(), torch.ones(len(edges)))
        assert bool(((edges >= 0) & (edges <= 1)).all())
        if seen:
            assert torch.equal(codes[:seen], before), "vectors of old classes moved"
        assert plugin.memory is not None
        if kept is not None:
            old = plugin.memory.subset(kept.classes)
            assert torch.equal(old.means, kept.means), "prototypes of old classes moved"
        seen = len(codes)
    assert plugin.memory.counts.reshape(6, 4).sum(0).tolist() == [240] * 4


def test_vectors_of_the_experience_and_the_backbone_move(uneven_benchmark: Any) -> None:
    plugin = small_plugin(code_init="random")
    strategy = build_strategy("naive", [plugin])
    before = copy.deepcopy(strategy.model.state_dict())
    drawn: list[torch.Tensor] = []
    initial = plugin.initial_codes
    plugin.initial_codes = lambda *a: drawn.append(initial(*a)) or drawn[-1]  # type: ignore[method-assign]
    train_on(strategy, uneven_benchmark.train_stream[:2])
    codes = plugin.parameters.codes.detach()
    assert bool((codes[:12] != drawn[0]).any(1).all())
    assert bool((codes[12:] != drawn[1]).any(1).all())
    after = strategy.model.state_dict()
    assert not torch.equal(before["features.1.weight"], after["features.1.weight"])
    # Its loss replaces the criterion, which alone would have trained the classifier.
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_a_class_that_comes_back_keeps_its_row_and_trains_again(benchmark: Any) -> None:
    plugin = small_plugin()
    strategy = build_strategy("naive", [plugin, InMemory()])
    first, second = benchmark.train_stream[0], benchmark.train_stream[1]
    train_on(strategy, [first, second])
    ids, codes = plugin.kept.rows.ids, plugin.parameters.codes.detach().clone()
    means = plugin.prototypes()
    train_on(strategy, [first])
    assert torch.equal(plugin.kept.rows.ids, ids)
    moved = (plugin.parameters.codes.detach() != codes).any(1)
    again = torch.isin(ids, torch.tensor(sorted(first.classes_in_this_experience)))
    assert moved.view(-1, 4).any(1).tolist() == again.tolist()
    renewed = (plugin.prototypes() != means).any(1).view(-1, 4).all(1)
    assert renewed.tolist() == again.tolist()


def test_answers_ignore_the_length_of_features_and_vectors(benchmark: Any) -> None:
    plugin = small_plugin()
    train_on(build_strategy("naive", [plugin]), benchmark.train_stream[:1])
    features = torch.rand(9, 16)
    winners = plugin.answer(features).argmax(1)
    with torch.no_grad():
        plugin.parameters.codes *= 7
    assert torch.equal(plugin.answer(3 * features).argmax(1), winners)
    assert torch.equal(plugin.answer(torch.zeros(1, 16)), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"eps": 1.5}, r"eps=1\.5"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"mix": (0.8, 0.2)}, "mix="),
    ],
)
def test_constants_that_make_no_sense_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NAPAVQLoss(**settings)


def test_ready_made_strategy_learns_new_classes_and_keeps_old_ones(benchmark: Any) -> None:
    torch.manual_seed(0)
    model = build_net(features=32)
    strategy = NAPAVQ(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        # Tied to the size of a batch: the default is for 64 images and 512 features.
        method=NAPAVQPlugin(
            NAPAVQLoss(k=4), distillation_weight=1.0, code_lr=0.5, later_code_lr=0.5
        ),
        later_lr_factor=0.3,
        train_mb_size=16,
        train_epochs=8,
        plugins=[InMemory()],
        evaluator=quiet_evaluator(),
    )
    train_on(strategy, benchmark.train_stream)
    accuracies = []
    for experience in benchmark.test_stream:
        winners = torch.cat(outputs_at_eval(strategy, experience)).argmax(1)
        labels = torch.as_tensor(list(experience.dataset.targets))
        accuracies.append(float((winners == labels).float().mean()))
    # Gradient descent alone ends with [0, 0, 1].
    assert accuracies[0] + accuracies[1] > 0.4
    assert accuracies[2] > 0.3


# -- golden values ---------------------------------------------------------------------------


def test_predictions_of_the_authors_code() -> None:
    randn = normal(6)
    codes, z, case = randn(12, 3), randn(9, 3), golden()["predict"]
    for answer, expected in (("cosine", case["pred"]), ("distance", case["pred_raw_euclid_rot0"])):
        plugin = NAPAVQPlugin(answer=answer)
        plugin.parameters.append(codes)
        plugin.kept.rows.add(torch.arange(3))
        assert plugin.answer(z).argmax(1).tolist() == expected


def test_answers_by_distance_are_the_softmax_that_is_trained() -> None:
    plugin = NAPAVQPlugin(answer="distance")
    plugin.parameters.append(torch.randn(8, 5))
    features, labels = torch.randn(6, 5), torch.randint(2, (6,))
    squares = squared_distances(features, plugin.parameters.codes.detach()[::4])
    trained = distance_cross_entropy(squares, labels, plugin.loss.temperature)
    torch.testing.assert_close(
        nn.functional.cross_entropy(plugin.answer(features), labels), trained
    )


def test_an_unknown_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="answer='euclid'"):
        NAPAVQPlugin(answer="euclid")  # type: ignore[arg-type]


def test_prototypes_are_means_over_all_images_in_each_orientation() -> None:
    case = golden()["proto_save"]
    images = torch.from_numpy(np.random.RandomState(5).rand(10, 3, 32, 32)).float()
    data = TensorData(images, torch.arange(10) % 2)
    benchmark = nc_benchmark(data, data, n_experiences=1, task_labels=False, shuffle=False)
    plugin = NAPAVQPlugin()
    strategy = build_strategy("naive", [plugin], SpatialMean(), train_epochs=0)
    train_on(strategy, benchmark.train_stream)
    assert plugin.memory is not None
    assert plugin.memory.classes.tolist() == case["keys"]
    everything = torch.tensor(case["all10_would_be_4"])
    torch.testing.assert_close(plugin.prototypes()[4], everything, rtol=1e-5, atol=0)
    # The authors' code drops the last, incomplete batch.
    complete = images[:8].mean((2, 3))
    for key, mine in (("proto_0", complete[::2]), ("proto_4", complete[1::2])):
        torch.testing.assert_close(mine.mean(0), torch.tensor(case[key]), rtol=1e-5, atol=0)


class SpatialMean(nn.Module):
    """Features are the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.mean((2, 3)))


def test_class_orders_of_the_authors_code() -> None:
    case = golden()["class_order"]
    config = BenchmarkConfig(order_seed=case["seed"])
    cifar = class_order(config, torch.arange(100), seed=0)
    assert (cifar[:10], cifar[-5:]) == (case["cifar_head"], case["cifar_tail"])
    assert class_order(config, torch.arange(200), seed=0)[:10] == case["tiny_head"]


def test_every_mixture_has_a_neighbour_of_its_own() -> None:
    """The released code, run with NumPy 1.23 or later, gives all the same one."""
    assert golden()["numpy_index_bug"]["single_neighbour_for_whole_batch"] == 10
    edges = torch.eye(8)
    edges[0, 5] = edges[4, 3] = 1.0
    neighbours = choose_neighbours(edges, torch.tensor([0, 4, 0]), torch.tensor([0.9, 0.1, 0.1]))
    assert neighbours.tolist() == [5, 3, 0]


def test_coding_vectors_can_start_at_the_means_of_new_classes(uneven_benchmark: Any) -> None:
    plugin = small_plugin(code_init="means")
    strategy = build_strategy("naive", [plugin, InMemory()])
    train_on(strategy, uneven_benchmark.train_stream[:1])
    known = len(plugin.parameters)
    started = []
    grow = plugin.grow

    def noted(feature_dim: int) -> None:
        grow(feature_dim)
        started.append(plugin.parameters.codes.detach().clone())
        assert torch.equal(started[-1], torch.cat([before, plugin.prototypes()[known:]]))

    plugin.grow = noted  # type: ignore[method-assign]
    before = plugin.parameters.codes.detach().clone()
    train_on(strategy, uneven_benchmark.train_stream[1:2])
    assert len(started) == 1
    assert len(started[0]) == known + 4
    assert bool(started[0][known:].abs().sum(1).gt(0).all())
