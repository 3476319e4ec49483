from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP, SimpleCNN, SimpleMLP
from torch import Tensor, nn
from torch.nn import functional

from protocl.strategies.plugin.classifier_layer import FeatureFinder, find_features, one_sample
from protocl.strategies.plugin.feature_hook import FeatureHook, FeaturePoint
from protocl.strategies.plugin.model_output import main_output, width_of

X = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """``fc`` is the hidden layer, ``out`` the classifier; both have as many units."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda out: out) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.out, self.wrap = nn.Linear(8, 6), nn.Linear(6, 6), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.out(functional.relu(self.fc(x))))


class Shared(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.fc(x).relu())
        return out


class Residual(nn.Module):
    """A feature extractor that ends in the sum of a linear layer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(x)
        return out


def found(model: nn.Module, x: Tensor = X) -> FeaturePoint:
    return find_features(model, one_sample(model, x, None))


def features(model: nn.Module, x: Tensor = X) -> Tensor:
    hook = FeatureHook()
    hook.open_at(model, found(model, x))
    model(x)
    (seen,) = hook.close()
    return seen


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: out,
        lambda out: {"loss": out.sum(), "logits": out},
        lambda out: SimpleNamespace(logits=out, hidden=out[:, :2]),
        lambda out: (out, out.relu()),
        lambda out: 0.1 * out - 3,
        lambda out: out.softmax(1),
        lambda out: out.log_softmax(1),
        lambda out: functional.dropout(out, 0.5, training=False),
        lambda out: out.masked_fill(torch.arange(6) > 2, -1000.0),
        lambda out: functional.pad(out, (0, 3)),
    ],
    ids=["", "dict", "object", "tuple", "scaled", "softmax", "log", "dropout", "masked", "padded"],
)
def test_the_last_layer_not_the_one_with_the_name(wrap: Callable[[Tensor], Any]) -> None:
    model = Net(wrap).eval()
    assert found(model)[:3] == FeaturePoint("out")[:3]
    torch.testing.assert_close(features(model), functional.relu(model.fc(X)))


def test_a_layer_that_is_used_twice_is_read_at_its_last_call() -> None:
    model = Shared()
    torch.testing.assert_close(features(model), model.fc(X).relu())


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten(), nn.Sequential(nn.Conv2d(1, 2, 3))])
def test_a_model_without_a_linear_layer_is_a_feature_extractor(model: nn.Module) -> None:
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(features(model, x), model(x).flatten(1))


def test_a_linear_model_is_its_own_classifier() -> None:
    assert torch.equal(features(nn.Linear(8, 3)), X)


@pytest.mark.parametrize(
    "model",
    [Residual(), nn.Sequential(nn.Linear(8, 4), nn.ReLU()), nn.Sequential(Net(), nn.Tanh())],
    ids=["residual", "relu", "tanh"],
)
def test_what_cannot_be_told_is_asked(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"give layer=NAME.*nn\.Identity\(\)"):
        found(model)


def test_a_head_of_several_modules_is_one_layer() -> None:
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    assert found(nn.Sequential(nn.BatchNorm1d(8), nn.Sequential(head, nn.Dropout()))).path == "1"
    several = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    class Vgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = several

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.classifier(x)
            return out

    assert found(Vgg()).path == "classifier.2"


def test_models_of_avalanche() -> None:
    assert found(SimpleMLP(input_size=8)).path == "classifier"
    assert found(SimpleCNN(), torch.rand(2, 3, 32, 32)).path == "classifier"
    model, tasks = MTSimpleMLP(input_size=8), torch.zeros(5, dtype=torch.int64)
    model.classifier.masking = False
    assert find_features(model, one_sample(model, X, tasks)).path == "classifier"


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), Net(), nn.Dropout())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model[0].eval()
    found(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert [module.training for module in model.children()] == [False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_is_tried_once_and_another_one_anew() -> None:
    find, runs = FeatureFinder(), []

    def forward(model: nn.Module) -> Any:
        runs.append(model)
        return model(X)

    one, other = Net(), Shared()
    for model in (one, one, other):
        assert find(model, lambda m=model: forward(m)).path == ("out" if model is one else "fc")
    assert runs.count(one) == runs.index(other)


def test_the_tensor_that_counts() -> None:
    assert main_output(torch.tensor(1.0)) is None
    assert main_output({"loss": torch.tensor(1.0)}) is None
    assert main_output(((torch.tensor(1.0), X), {})) is X


class TwoOutputs(nn.Module):
    """Features ``(N, 8)`` and scores ``(N, 3)``, together in one object."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.classifier, self.wrap = nn.Linear(8, 8), nn.Linear(8, 3), wrap

    def forward(self, x: Tensor) -> Any:
        z = self.body(x).relu()
        return self.wrap(z, self.classifier(z))


@pytest.mark.parametrize("layer", [None, "classifier"])
@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda z, out: (z, out), (1,)),
        (lambda z, out: [out, z], (0,)),
        (lambda z, out: {"emb": z, "pred": out}, ("pred",)),
        (lambda z, out: {"loss": out.sum(), "parts": (z, out)}, ("parts", 1)),
        (lambda z, out: SimpleNamespace(out=z, logits=out), ("logits",)),
        (lambda z, out: SimpleNamespace(logits=z, out=out), ("out",)),
    ],
    ids=["tuple", "list", "dict", "nested", "object", "misnamed"],
)
def test_the_scores_are_what_the_classifier_returned(
    wrap: Callable[[Tensor, Tensor], Any], place: tuple[Any, ...], layer: str | None
) -> None:
    model = TwoOutputs(wrap).eval()
    point = find_features(model, lambda: model(X), layer)
    assert (point.path, point.scores) == ("classifier", place)
    scores = main_output(model(X), point.scores)
    assert scores is not None
    assert torch.equal(scores, model.classifier(model.body(X).relu()))


def test_outputs_of_which_none_is_known_to_be_the_scores_are_refused() -> None:
    for output in ((X, X[:, :3]), {"emb": X, "pred": X[:, :3]}, (X[:, None, None], X)):
        with pytest.raises(TypeError, match=r"several tensors.*under 'logits'"):
            main_output(output)
        assert width_of(output, len(X)) == 0
    assert main_output((X, X[:, 0])) is X
    assert main_output((X, X + 1)) is X


class Convolutional(nn.Module):
    """Maps of features, and a 1x1 convolution that scores them."""

    def __init__(self, pool_first: bool, end: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.cls, self.pool_first, self.end = nn.Conv2d(8, 3, 1), pool_first, end

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        out = self.cls(self.pool(z)) if self.pool_first else self.pool(self.cls(z))
        scores: Tensor = self.end(out.flatten(1))
        return scores


@pytest.mark.parametrize("end", [nn.Identity(), nn.LogSoftmax(1)])
@pytest.mark.parametrize("pool_first", [True, False])
def test_a_classifier_may_be_a_1x1_convolution(pool_first: bool, end: nn.Module) -> None:
    assert found(Convolutional(pool_first, end), torch.rand(3, 1, 6, 6)).path == "cls"


@pytest.mark.parametrize("pool_first", [True, False])
def test_a_1x1_convolution_inside_a_feature_extractor_is_none(pool_first: bool) -> None:
    x = torch.rand(3, 1, 6, 6)
    for model in (Convolutional(pool_first, nn.ReLU()), nn.Conv2d(1, 4, 1)):
        assert found(model, x) == FeaturePoint("", after=True)
