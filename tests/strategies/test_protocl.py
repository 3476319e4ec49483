"""ProtoCL as a plugin: the order of a step, replay, refitting, laws of a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import nn

from protocl import PrototypeMemory
from protocl.heads import BayesianPrototypes, RandomPrior, SharedPrior
from protocl.strategies import InMemory
from protocl.strategies.protocl import ProtoCL, ProtoCLPlugin
from protocl.strategies.training.predictive_distillation import predictive_distillation
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    assert_equal_weights,
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
    weights_of,
)


def build_plugin(**settings: Any) -> ProtoCLPlugin:
    return ProtoCLPlugin(**{"noise": 0.5, "mem_size": 30, **settings})


@pytest.mark.parametrize("host", ["naive", "replay", "lwf", "ewc", "si", "der"])
def test_trains_inside_any_host(benchmark, host):
    plugin = build_plugin(mem_size=0 if host in ("replay", "der") else 30)
    strategy = build_strategy(host, [plugin])
    train_on(strategy, benchmark.train_stream)
    assert plugin.posterior.class_ids.tolist() == list(range(6))
    assert torch.isfinite(torch.cat(outputs_at_eval(strategy, benchmark.test_stream))).all()
    assert all(not m._forward_pre_hooks for m in strategy.model.modules())


def test_a_backbone_without_weights_is_refused(benchmark):
    strategy = build_strategy("naive", [build_plugin()])
    strategy.model.requires_grad_(False)
    with pytest.raises(ValueError, match="ProtoCL trains what computes the features"):
        train_on(strategy, benchmark.train_stream[:1])


class TestStep:
    def test_is_that_of_algorithm_1(self, benchmark):
        """A loop in plain torch: predict, gradient, update with the same embeddings, step."""
        batches: list[Any] = []

        class Look:
            def before_forward(self, strategy: Any, **kwargs: Any) -> None:
                batches.append((strategy.mb_x.clone(), strategy.mb_y.clone()))

        plugin, net = build_plugin(), build_net().double()
        net.features[4] = nn.Identity()  # dropout would draw
        reference = build_net().double()
        reference.features[4] = nn.Identity()
        strategy = build_strategy("naive", [Look(), AsDouble(), plugin], net)
        train_on(strategy, benchmark.train_stream[:1])
        self.run(reference, batches, sorted(benchmark.train_stream[0].classes_in_this_experience))
        for found, expected in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    @staticmethod
    def run(net: nn.Module, batches: list[Any], classes: list[int]) -> None:
        prior = RandomPrior().beliefs(torch.tensor(classes), 16, "iso")
        concentration, precision = prior.concentration.clone(), prior.precision.clone()
        natural = precision * prior.mean
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for x, y in batches:
            rows = torch.tensor([classes.index(label) for label in y.tolist()])
            z = net.features(x.double())
            variance = 0.5 + 1 / precision[:, 0]
            distances = (z[:, None] - natural / precision).square().sum(2)
            joint = concentration.log() - distances / (2 * variance) - 8 * variance.log()
            optimizer.zero_grad()
            nn.functional.cross_entropy(joint, rows).backward()
            for row, sample in zip(rows.tolist(), z.detach(), strict=True):
                concentration[row] += 1
                precision[row] += 1 / 0.5
                natural[row] += sample / 0.5
            optimizer.step()

    def test_the_posterior_gets_no_gradient_and_counts_every_visit(self, benchmark):
        plugin = build_plugin(mem_size=0)
        strategy = build_strategy("naive", [plugin])
        experience = benchmark.train_stream[0]
        train_on(strategy, [experience])
        assert float(plugin.posterior.counts.sum()) == 2 * len(experience.dataset)
        assert not plugin.posterior.sums.requires_grad

    def test_discounted_evidence_is_a_geometric_series(self, benchmark):
        plugin = build_plugin(mem_size=0, discount=0.5)
        strategy = build_strategy("naive", [plugin], train_mb_size=8, train_epochs=1)
        train_on(strategy, benchmark.train_stream[:1])
        sizes = [8] * (len(benchmark.train_stream[0].dataset) // 8)
        sizes += [len(benchmark.train_stream[0].dataset) % 8] * (
            len(benchmark.train_stream[0].dataset) % 8 > 0
        )
        expected = sum(size * 0.5**age for age, size in enumerate(reversed(sizes)))
        assert float(plugin.posterior.counts.sum()) == pytest.approx(expected)


class AsDouble:
    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mbatch[0] = strategy.mbatch[0].double()


class TestReplay:
    def test_later_experiences_train_on_both(self, benchmark):
        labels: set[int] = set()

        class Look:
            def before_forward(self, strategy: Any, **kwargs: Any) -> None:
                if strategy.clock.train_exp_counter == 1:
                    labels.update(strategy.mb_y.tolist())

        strategy = build_strategy("naive", [build_plugin(), InMemory(), Look()])
        train_on(strategy, benchmark.train_stream[:2])
        assert labels == {
            c for e in benchmark.train_stream[:2] for c in e.classes_in_this_experience
        }


class TestRefit:
    def test_is_the_posterior_of_the_last_training_set_under_the_final_encoder(self, benchmark):
        adapted: list[Any] = []

        class Look:
            def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
                adapted.append(strategy.adapted_dataset)

        plugin = build_plugin(refit="memory")
        strategy = build_strategy("naive", [plugin, Look()])
        train_on(strategy, benchmark.train_stream[:2])
        x = torch.stack([sample[0] for sample in adapted[1]])
        with torch.no_grad():
            features = strategy.model.eval().features(x)
        memory = PrototypeMemory(16).update(features, torch.tensor(list(adapted[1].targets)))
        head = BayesianPrototypes(RandomPrior(), 0.5).fit(memory)
        logits, ids = plugin.class_logits(features)
        assert ids.tolist() == head.classes.tolist()
        torch.testing.assert_close(logits, head(features), rtol=1e-3, atol=1e-3)

    def test_does_not_disturb_training(self, benchmark):
        models = []
        for refit in ("none", "memory"):
            strategy = build_strategy("naive", [build_plugin(refit=refit)])
            train_on(strategy, benchmark.train_stream[:1])
            models.append(weights_of(strategy.model))
        assert_equal_weights(*models)

    def test_the_fitted_covariance_answers_with_equal_classes(self, benchmark):
        plugin = build_plugin(refit="memory", answer="full")
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, benchmark.train_stream)
        assert plugin.memory.level == "shared"
        x = torch.stack([sample[0] for sample in benchmark.test_stream[0].dataset])
        with torch.no_grad():
            features = strategy.model.eval().features(x)
        logits, ids = plugin.class_logits(features)
        assert ids.tolist() == plugin.memory.classes.tolist()
        # Log densities of Gaussians with one covariance, whatever the counts of the classes.
        noise = plugin.head.get_buffer("_noise")
        covariances = noise.double() * (1 + 1 / plugin.memory.counts)[:, None, None]
        gaussians = torch.distributions.MultivariateNormal(plugin.memory.means, covariances)
        expected = gaussians.log_prob(features.double()[:, None]).double()
        found = logits.double()
        torch.testing.assert_close(
            found - found[:, :1], expected - expected[:, :1], rtol=1e-2, atol=1e-2
        )


class TestDistillation:
    def test_is_the_divergence_of_the_tempered_predictions(self):
        torch.manual_seed(0)
        new, old = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        p, q = (old / 2).softmax(1), (new / 2).softmax(1)
        expected = 4 * (p * (p / q).log()).sum(1).mean()
        torch.testing.assert_close(predictive_distillation(new, old, 2.0), expected)
        assert predictive_distillation(old, old) == 0
        new.requires_grad_(True)
        assert torch.autograd.gradcheck(lambda x: predictive_distillation(x, old), (new,))

    def test_holds_the_embedding_where_it_was(self, benchmark):
        drifts = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            plugin = build_plugin(mem_size=0, distillation=weight)
            strategy = build_strategy("naive", [plugin])
            train_on(strategy, benchmark.train_stream[:1])
            x = torch.stack([sample[0] for sample in benchmark.test_stream[1].dataset])
            before = strategy.model.eval().features(x).detach()
            train_on(strategy, benchmark.train_stream[1:2])
            drifts.append(float((strategy.model.eval().features(x) - before).norm()))
        assert drifts[1] < drifts[0]

    def test_nothing_is_held_in_the_first_experience_or_kept_after_one(self, benchmark):
        models = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            plugin = build_plugin(distillation=weight)
            strategy = build_strategy("naive", [plugin])
            train_on(strategy, benchmark.train_stream[:1])
            models.append(weights_of(strategy.model))
            assert plugin.held.teacher is None
        assert_equal_weights(*models)


class TestPrediction:
    def test_before_training_the_model_answers_itself(self, benchmark):
        plain = build_strategy("naive", [])
        strategy = build_strategy("naive", [build_plugin()])
        found = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
        assert torch.equal(found, torch.cat(outputs_at_eval(plain, benchmark.test_stream)))

    def test_classes_named_from_the_start_take_part_but_do_not_win_unseen(self, benchmark):
        plugin = build_plugin(all_classes=range(6))
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, benchmark.train_stream[:1])
        assert plugin.posterior.class_ids.tolist() == list(range(6))
        outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
        seen = set(benchmark.train_stream[0].classes_in_this_experience)
        assert set(outputs.argmax(1).tolist()) <= seen

    def test_evaluation_leaves_the_posterior_alone(self, benchmark):
        plugin = build_plugin()
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, benchmark.train_stream[:1])
        before = {name: value.clone() for name, value in plugin.posterior.state_dict().items()}
        strategy.eval(benchmark.test_stream)
        for name, value in plugin.posterior.state_dict().items():
            assert torch.equal(value, before[name])

    def test_it_learns_a_stream_of_classes(self, benchmark):
        torch.manual_seed(0)
        net = build_net(features=32)
        strategy = ProtoCL(
            model=net,
            optimizer=torch.optim.Adam(net.parameters(), lr=3e-3),
            plugin=build_plugin(mem_size=60, prior=SharedPrior()),
            train_mb_size=16,
            train_epochs=10,
            evaluator=quiet_evaluator(),
        )
        train_on(strategy, benchmark.train_stream)
        outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
        true = torch.tensor([y for e in benchmark.test_stream for y in e.dataset.targets])
        assert float((outputs.argmax(1) == true).float().mean()) > 0.75

    def test_class_ids_that_start_at_zero_in_each_task(self, train_data, test_data):
        stream = nc_benchmark(
            train_data, test_data, 3, task_labels=True, seed=0,
            class_ids_from_zero_in_each_exp=True,
        )  # fmt: skip
        plugin = build_plugin(per_task=True)
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, stream.train_stream)
        assert len(plugin.posterior) == 6
        outputs = torch.cat(outputs_at_eval(strategy, stream.test_stream))
        assert set(outputs.argmax(1).tolist()) == {0, 1}


class TestState:
    def test_a_checkpoint_continues_bit_for_bit(self, benchmark, tmp_path: Path):
        strategy = build_strategy("naive", [build_plugin()])
        assert_continues_bit_for_bit(strategy, benchmark, tmp_path)

    @pytest.mark.parametrize(
        "settings", [{}, {"refit": "memory", "answer": "full"}], ids=["plain", "covariance"]
    )
    def test_state_dict_holds_tensors_and_numbers_only(self, benchmark, tmp_path: Path, settings):
        plugin = build_plugin(**settings)
        strategy = build_strategy("naive", [plugin])
        train_on(strategy, benchmark.train_stream)
        torch.save(plugin.state_dict(), tmp_path / "a")
        fresh = build_plugin(
            prior=RandomPrior(seed=9), **settings
        )  # the prior is part of the state
        fresh.load_state_dict(torch.load(tmp_path / "a", weights_only=True))
        features = torch.rand(7, 16)
        for found, expected in zip(
            fresh.class_logits(features), plugin.class_logits(features), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "both"}, "objective='both': expected 'conditional' or 'joint'"),
        ({"refit": "all"}, "refit='all': expected 'none' or 'memory'"),
        ({"discount": 0.0}, "discount=0.0: expected a number above 0, at most 1"),
        ({"distillation": -1.0}, "distillation=-1.0, temperature=2.0: expected a weight of"),
        ({"answer": "lda"}, "answer='lda': expected 'posterior', 'iso', 'diag' or 'full'"),
        ({"answer": "iso"}, "answer='iso' is made of refitted statistics: add refit=memory"),
        ({"selection": "best"}, "selection='best': expected 'random' or 'medoids'"),
        ({"mem_size": -1}, "mem_size=-1: expected a number of samples, at least 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ProtoCLPlugin(**settings)
