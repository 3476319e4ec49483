"""iCaRL in a federation: its objective, its pool, its answers."""

from __future__ import annotations

import math

import pytest
import torch

from protocl.errors import ConfigError
from protocl.federation.reconnaissance.config import LearnerSetup
from protocl.federation.reconnaissance.methods.icarl import ICaRLLearnerConfig, distilled
from protocl.federation.reconnaissance.methods.layer import Layer
from protocl.federation.reconnaissance.scenario import SERVER
from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory

SETUP = LearnerSetup(clients=2, feature_dim=4, n_classes=5, seed=0, fingerprint="f")
QUICK = {"local_epochs": 5, "pool_epochs": 5, "lr": 0.05, "exemplars": 40}


def layer_knowing(*classes: int) -> Layer:
    layer = Layer(5, 4)
    layer.known[list(classes)] = True
    layer.weights[0] = torch.arange(20.0).reshape(5, 4) / 10
    return layer


def clusters(*classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat_interleave(20)
    centres = torch.cat([torch.eye(4), torch.full((1, 4), -0.5)])
    return centres[y] + 0.1 * torch.randn(len(y), 4, generator=generator), y


def test_the_objective_is_that_of_the_paper():
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    objective = distilled(layer_knowing(0, 3), x, torch.tensor([2]), temperature=2.0, weight=0.5)
    # Columns 0, 2, 3 of which the first and the last were known, with outputs 0 and 1.2.
    logits = torch.tensor([[0.3, -0.4, 1.0]])
    loss = objective(logits, torch.tensor([1]), torch.tensor([0]))

    def cross_entropy(logit: float, target: float) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    labels = cross_entropy(0.3, 0) + cross_entropy(-0.4, 1) + cross_entropy(1.0, 0)
    before = cross_entropy(0.15, 0.5) + cross_entropy(0.5, 1 / (1 + math.exp(-0.6)))
    assert float(loss) == pytest.approx(labels + 0.5 * before, rel=1e-5)


def test_gradients_are_right():
    x, y = clusters(1, 2)
    objective = distilled(layer_knowing(1, 4), x, y, temperature=2.0, weight=1.0)
    rows = torch.tensor([0, 7, 25])
    labels = torch.tensor([0, 0, 1])
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: objective(z, labels, rows), (logits,))


def test_distillation_keeps_what_was_known():
    outputs = {}
    for weight in (0.0, 10.0):
        learner = ICaRLLearnerConfig(distillation=weight, **QUICK).build(SETUP)
        layer = layer_knowing(0)
        x, y = clusters(1)
        before = layer.logits(x)[:, 0]
        learner.train(layer, x, y)
        outputs[weight] = (layer.logits(x)[:, 0] - before).abs().mean()
    assert outputs[10.0] < 0.9 * outputs[0.0]  # the labels pull the other way


@pytest.mark.parametrize("answer", ["layer", "exemplar_means"])
def test_two_clients_end_knowing_the_classes_of_both(answer: str):
    learner = ICaRLLearnerConfig(answer=answer, **QUICK).build(SETUP)
    learner.learn(SERVER, *clusters(0, 4))
    learner.publish(2)
    learner.learn(0, *clusters(1, 2, seed=1))
    learner.learn(1, *clusters(2, 3, seed=2))
    up, down = learner.merge([(0, SERVER), (1, SERVER), (SERVER, 0), (SERVER, 1)])
    x, y = clusters(0, 1, 2, 3, 4, seed=3)
    for node in (0, 1):
        assert (learner.predict(node, x) == y).float().mean() > 0.95
    # Each mission's 40 samples go up, and down to the other client.
    samples = 2 * 40 * (4 * 4 + 8)
    assert up > samples
    assert down > samples
    assert learner.exemplars.nbytes == 5 * 8 * 4 * 4


def test_exemplar_means_are_those_of_a_memory_of_the_exemplars():
    learner = ICaRLLearnerConfig(answer="exemplar_means", scale=1.0, **QUICK).build(SETUP)
    x, y = clusters(0, 1)
    learner.learn(SERVER, x, y)
    unit = torch.nn.functional.normalize(x, dim=1)
    head = NearestMean().fit(PrototypeMemory(4).update(unit, y))  # the budget holds them all
    query = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))
    expected = head.predict(torch.nn.functional.normalize(query, dim=1))
    assert torch.equal(learner.predict(SERVER, query), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "votes"}, "method.answer='votes': expected 'layer' or 'exemplar_means'"),
        ({"exemplars": 0}, "method.exemplars=0"),
        ({"pool_epochs": 0}, "method.pool_epochs=0"),
        ({"temperature": -1.0}, "method.temperature=-1.0"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ICaRLLearnerConfig(**settings).build(SETUP)
