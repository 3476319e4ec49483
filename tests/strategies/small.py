"""Models, strategies and data small enough to train in tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.training import DER, EWC, GEM, LwF, Naive, Replay, SynapticIntelligence
from avalanche.training.plugins import EvaluationPlugin
from sklearn.datasets import load_digits
from torch import Tensor, nn

from protocl.data import TensorData
from protocl.io import checkpoint
from protocl.strategies.plugin.model_output import scores_of

CLASSES = 6

STRATEGIES: dict[str, Callable[..., Any]] = {
    "naive": Naive,
    "replay": lambda **k: Replay(mem_size=30, **k),
    "lwf": lambda **k: LwF(alpha=1.0, temperature=2.0, **k),
    "ewc": lambda **k: EWC(ewc_lambda=1.0, **k),
    "gem": lambda **k: GEM(patterns_per_exp=10, memory_strength=0.5, **k),
    "si": lambda **k: SynapticIntelligence(si_lambda=0.1, **k),
    "der": lambda **k: DER(mem_size=30, **k),
}


class Net(nn.Module):
    """Two layers with everything that could be disturbed: BatchNorm and dropout."""

    def __init__(self, inputs: int = 64, features: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, features),
            nn.BatchNorm1d(features),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


def build_net(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


def freeze(net: Net) -> Net:
    """Only the classifier may learn; dropout is off and BatchNorm keeps its statistics."""
    net.features.requires_grad_(False)
    net.train = lambda mode=True: nn.Module.train(net, False)  # type: ignore[method-assign]
    return net.train()


def build_strategy(
    name: str, plugins: list[Any], model: nn.Module | None = None, **settings: Any
) -> Any:
    """A strategy of Avalanche on a new net, with the random state it starts from."""
    model = build_net() if model is None else model
    arguments: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 18,
        "train_epochs": 2,
        "eval_mb_size": 64,
        "plugins": plugins,
        "evaluator": quiet_evaluator(),
    }
    strategy = STRATEGIES[name](**{**arguments, **settings})
    torch.manual_seed(1)
    return strategy


def quiet_evaluator(*metrics: Any) -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No loggers specified"
        return EvaluationPlugin(*metrics)


def train_on(strategy: Any, stream: Any, **settings: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's own deprecations
        for experience in stream:
            strategy.train(experience, **settings)


def outputs_at_eval(strategy: Any, stream: Any) -> list[Tensor]:
    """The scores in ``mb_output`` of every evaluation mini-batch."""
    seen: list[Tensor] = []

    class Recorder:
        def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(scores_of(strategy.mb_output).clone())

    strategy.plugins.append(Recorder())
    strategy.eval(stream)
    strategy.plugins.pop()
    return seen


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(
    one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]
) -> None:
    """Bit for bit."""
    first = one if isinstance(one, dict) else one.state_dict()
    second = other if isinstance(other, dict) else other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_continues_bit_for_bit(strategy: Any, benchmark: Any, folder: Path) -> None:
    """Saved after the first experience, a strategy goes on from the file as the original does."""
    train_on(strategy, benchmark.train_stream[:1])
    shared = {"benchmark": benchmark, "stream": benchmark.train_stream}
    checkpoint.save(folder / "a", (strategy, torch.get_rng_state()), shared)
    restored, random_state = checkpoint.load(folder / "a", shared)
    runs = []
    for one in (strategy, restored):
        torch.set_rng_state(random_state)
        train_on(one, benchmark.train_stream[1:])
        runs.append(torch.cat(outputs_at_eval(one, benchmark.test_stream)))
    assert_equal_weights(strategy.model, restored.model)
    assert torch.equal(*runs)


def digits(train: bool) -> TensorData:
    """240 training or 120 test digits of six classes."""
    images, labels = load_digits(n_class=CLASSES, return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    part = slice(0, 240) if train else slice(240, 360)
    return TensorData(x[part], torch.tensor(labels)[part])
