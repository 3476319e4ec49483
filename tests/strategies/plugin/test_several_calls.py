"""Strategies that run the model more than once on a mini-batch, and plugins that look inside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import FeatureDistillationPlugin
from avalanche.training.supervised import ER_ACE, ER_AML
from torch import Tensor, nn

from protocl.data import TensorData
from protocl.strategies import (
    GPCPlugin,
    IL2APlugin,
    NAPAVQPlugin,
    PALMPlugin,
    PASSPlugin,
    PRDPlugin,
    ProtoCLPlugin,
    ProtoGCDPlugin,
    PrototypePlugin,
)
from protocl.strategies.training.views import named_views
from tests.strategies.plugin.test_plugin_laws import means_of
from tests.strategies.small import Net, build_net, freeze, quiet_evaluator, train_on

HOSTS: dict[str, Any] = {
    "er-ace": lambda **k: ER_ACE(mem_size=120, batch_size_mem=9, **k),
    "er-aml": lambda **k: ER_AML(
        mem_size=120, batch_size_mem=9, feature_extractor=k["model"].features, **k
    ),
}

METHODS: dict[str, Any] = {
    "prd": lambda: PRDPlugin(views=named_views("copies")),
    "pass": PASSPlugin,
    "il2a": IL2APlugin,
    "napa_vq": NAPAVQPlugin,
    "palm": PALMPlugin,
    "protogcd": ProtoGCDPlugin,
    "gpc": GPCPlugin,
}


class Concatenated(Naive):
    """Runs the model on each half of a mini-batch."""

    def forward(self) -> Tensor:
        half = len(self.mb_x) // 2
        return torch.cat([self.model(self.mb_x[:half]), self.model(self.mb_x[half:])])


def build(host: Any, model: Net, plugins: list[Any], **settings: Any) -> Any:
    common: dict[str, Any] = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "train_mb_size": 18,
        "train_epochs": 1, "evaluator": quiet_evaluator(), **settings,
    }  # fmt: skip
    return host(model=model, plugins=plugins, **common)


def without_dropout() -> Net:
    """In evaluation mode for ever, but all of it learns."""
    return freeze(build_net()).requires_grad_(True)


@pytest.mark.parametrize("host", HOSTS)
def test_each_sample_of_the_experience_counts_once(
    benchmark: Any, train_data: TensorData, host: str
) -> None:
    plugin = PrototypePlugin(collect="training")
    model = freeze(build_net())
    train_on(build(HOSTS[host], model, [plugin], train_epochs=2), benchmark.train_stream)
    expected = means_of(model, train_data)
    assert plugin.memory is not None
    assert torch.equal(plugin.memory.counts, expected.counts)
    torch.testing.assert_close(plugin.memory.means, expected.means)


@pytest.mark.parametrize("method", [*METHODS, "protocl"])
def test_losses_on_features_read_those_of_the_mini_batch(benchmark: Any, method: str) -> None:
    """Replayed samples have no labels there, so that nothing is learned from them."""
    weights = []
    for host in (HOSTS["er-ace"], lambda **k: Naive(criterion=nn.CrossEntropyLoss(), **k)):
        model = without_dropout()
        plugin = METHODS.get(method, ProtoCLPlugin)()
        strategy = build(host, model, [Seeded(), plugin], train_mb_size=1000)
        train_on(strategy, benchmark.train_stream[:2])
        weights.append(model.features[1].weight.detach().clone())
    torch.testing.assert_close(*weights)


class Seeded:
    """Lets hosts that draw replayed samples draw the same for whatever comes after."""

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        order = (strategy.mb_x.flatten(1) @ torch.arange(64.0).sin()).argsort()  # without ties
        strategy.mbatch = [part[order] for part in strategy.mbatch]
        torch.manual_seed(0)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        torch.manual_seed(0)


@pytest.mark.parametrize("plugin", [PrototypePlugin(collect="training"), PASSPlugin()])
def test_an_output_put_together_from_several_is_refused(benchmark: Any, plugin: Any) -> None:
    strategy = build(Concatenated, build_net(), [plugin], criterion=nn.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match=r"called 2 times.*mb_output.*collect='extra_pass'"):
        train_on(strategy, benchmark.train_stream)


@pytest.mark.parametrize("method", METHODS)
def test_a_reader_of_the_model_s_features_does_not_fit_views(benchmark: Any, method: str) -> None:
    plugins = [FeatureDistillationPlugin(), METHODS[method]()]
    strategy = build(Naive, build_net(), plugins, criterion=nn.CrossEntropyLoss())
    message = r"views of each sample, so FeatureDistillationPlugin.*leave that plugin out"
    with pytest.raises(ValueError, match=message):
        train_on(strategy, benchmark.train_stream)


class WithFeatures(Net):
    """Returns its features before its scores."""

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return features, self.classifier(features)


@pytest.mark.parametrize("layer", [None, "classifier"])
def test_the_host_s_loss_is_that_of_the_scores(benchmark: Any, layer: str | None) -> None:
    weights = []
    for kind in (Net, WithFeatures):
        torch.manual_seed(0)
        model, plugin = kind(), PASSPlugin(host_loss=1.0, layer=layer)
        strategy = build(Naive, model, [plugin], criterion=nn.CrossEntropyLoss())
        torch.manual_seed(0)
        train_on(strategy, benchmark.train_stream[:1])
        weights.append(model.classifier.weight.detach())
    assert torch.equal(*weights)
