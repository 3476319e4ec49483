"""Adaptation in the first experience: what moves, what stays, and what is answered from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import Tensor, nn
from torch.nn import functional

from protocl import PrototypeMemory, heads
from protocl.backbones import BackboneConfig, Classifier, build_backbone, fingerprint
from protocl.backbones.branches import Branches
from protocl.data import TensorData
from protocl.errors import ConfigError
from protocl.strategies import APER, SLDA, NearestMean, RanPAC, SimpleCIL
from protocl.strategies.aper import SESSION
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule
from protocl.strategies.frozen.base import FrozenBackbone
from protocl.strategies.frozen.first_session import Session, SessionCosine
from tests.golden.ptm import golden, inputs, scores
from tests.strategies.small import (
    CLASSES,
    assert_continues_bit_for_bit,
    assert_equal_weights,
    build_net,
    quiet_evaluator,
    train_on,
    weights_of,
)

pytest.importorskip("timm")

VIT = ("finetune", "vpt_shallow", "vpt_deep", "ssf", "adapter")
CASES = [("vit", name) for name in VIT] + [("conv4", "finetune"), ("conv4", "bn")]
WIDTH = {"vit": 64, "conv4": 8}


def classifier(backbone: str) -> Classifier:
    config = BackboneConfig(name=backbone, width=WIDTH[backbone])
    built = build_backbone(config, (1, 8, 8), 0)
    torch.manual_seed(0)
    return Classifier(built, nn.Linear(built.feature_dim, CLASSES))


def adapted(kind: Any, model: nn.Module, adapt: str, **settings: Any) -> FrozenBackbone:
    usual = SESSION if kind is APER else Session()
    own = {name: settings.pop(name) for name in vars(usual) if name in settings}
    defaults: dict[str, Any] = {
        "model": model,
        "session": replace(usual, adapt=adapt, **own),
        "first_experience_epochs": 2,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "train_mb_size": 20,
        "evaluator": quiet_evaluator(),
    }
    strategy: FrozenBackbone = kind(**{**defaults, **settings})
    torch.manual_seed(1)
    return strategy


def features(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.backbone.eval()(x)
    return out


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_it_moves_in_the_first_experience_and_never_again(
    backbone: str, name: str, benchmark: Any, train_data: TensorData
) -> None:
    model = classifier(backbone)
    start = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    originals = {id(p): n for n, p in model.backbone.named_parameters()}
    before = features(model, train_data.x)
    strategy = adapted(SLDA, model, name)
    train_on(strategy, benchmark.train_stream[:1])
    assert strategy.frozen
    assert not torch.allclose(features(model, train_data.x), before, atol=1e-4)
    moved = {
        originals[id(p)]
        for p in model.backbone.parameters()
        if id(p) in originals and not torch.equal(p, start[originals[id(p)]])
    }
    assert moved == (set(start) if name == "finetune" else set())
    weights, steps = weights_of(model), strategy.clock.train_iterations
    train_on(strategy, benchmark.train_stream[1:])
    strategy.eval(benchmark.test_stream)
    assert_equal_weights(model, weights)
    assert strategy.clock.train_iterations == steps
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("two_branches", [False, True])
@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_statistics_are_those_of_the_backbone_that_stays(
    backbone: str, name: str, two_branches: bool, benchmark: Any, train_data: TensorData
) -> None:
    model = classifier(backbone)
    strategy = adapted(NearestMean, model, name, two_branches=two_branches)
    train_on(strategy, benchmark.train_stream)
    memory = strategy.memory
    assert memory is not None
    expected = PrototypeMemory(memory.feature_dim).update(
        features(model, train_data.x), train_data.y
    )
    torch.testing.assert_close(memory.means, expected.means, rtol=1e-5, atol=1e-5)
    assert memory.fingerprint == fingerprint(model.backbone)


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_the_pretrained_branch_stays_bit_for_bit(
    backbone: str, name: str, benchmark: Any, train_data: TensorData
) -> None:
    model, untouched = classifier(backbone), classifier(backbone)
    before = weights_of(model.backbone)
    strategy = adapted(APER, model, name)
    train_on(strategy, benchmark.train_stream)
    branches = model.backbone.network
    assert isinstance(branches, Branches)
    assert_equal_weights(branches.pretrained, before)
    width = untouched.backbone.feature_dim
    both = features(model, train_data.x)
    assert torch.equal(both[:, :width], features(untouched, train_data.x))
    assert both.shape[1] == model.backbone.feature_dim == 2 * width
    assert not torch.allclose(both[:, width:], both[:, :width], atol=1e-4)
    assert isinstance(strategy.head, heads.NearestMean)
    assert strategy.head.metric == "cosine"


def test_branches_can_be_normalised(train_data: TensorData, benchmark: Any) -> None:
    prints = set()
    for normalize in (False, True):
        model = classifier("vit")
        strategy = adapted(APER, model, "ssf", normalize_branches=normalize)
        train_on(strategy, benchmark.train_stream[:1])
        prints.add(fingerprint(model.backbone))
    assert len(prints) == 2
    both = features(model, train_data.x)
    norms = torch.stack([part.norm(dim=1) for part in both.chunk(2, dim=1)])
    torch.testing.assert_close(norms, torch.ones_like(norms))
    branches: Any = model.backbone.network
    expected = functional.normalize(features(Classifier(branches.adapted, nn.Identity()),
                                             train_data.x), dim=1)  # fmt: skip
    torch.testing.assert_close(both[:, 64:], expected)


def test_batch_norm_is_estimated_from_the_first_experience_alone(benchmark: Any) -> None:
    """With one batch an epoch, every epoch sees the same mean and variance."""
    model = classifier("conv4")
    data = benchmark.train_stream[0].dataset
    x = torch.stack([data[i][0] for i in range(len(data))])
    first = model.backbone.network[0][0](x).detach()
    train_on(adapted(SLDA, model, "bn", train_mb_size=len(data)), benchmark.train_stream)
    norm: Any = model.backbone.network[0][1]
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_model_of_the_users_own_is_adapted_without_its_classifier(benchmark: Any) -> None:
    from timm.models import VisionTransformer

    model = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=CLASSES,
                              embed_dim=32, depth=2, num_heads=2)  # fmt: skip
    blocks, head = weights_of(model.blocks), weights_of(model.head)
    strategy = adapted(RanPAC, model, "vpt_shallow", projection=50)
    train_on(strategy, benchmark.train_stream)
    assert_equal_weights(nn.Sequential(*list(model.blocks)[1:-1]), blocks)
    assert not torch.equal(model.head.weight, head["weight"])
    assert (model.blocks[0].tokens != 0).any()
    assert strategy.memory is not None
    assert len(strategy.memory) == CLASSES


@pytest.mark.parametrize("name", ["finetune", "bn"])
def test_a_model_without_a_backbone_of_its_own_is_adapted_too(name: str, benchmark: Any) -> None:
    model = build_net()
    before = weights_of(model)
    train_on(adapted(SLDA, model, name), benchmark.train_stream)
    changed = {
        key for key, value in weights_of(model).items() if not torch.equal(value, before[key])
    }
    statistics = {f"features.2.{kind}" for kind in ("running_mean", "running_var")}
    expected = set(before) if name == "finetune" else statistics | {
        "classifier.weight", "classifier.bias", "features.2.num_batches_tracked",
    }  # fmt: skip
    assert changed == expected


def test_none_makes_no_step_whatever_the_epochs(benchmark: Any) -> None:
    model, plain = classifier("vit"), classifier("vit")
    before = weights_of(model)
    one = adapted(APER, model, "none")
    other = SimpleCIL(model=plain, evaluator=quiet_evaluator())
    for strategy in (one, other):
        train_on(strategy, benchmark.train_stream)
    assert_equal_weights(model, before)
    assert one.memory is not None
    assert other.memory is not None
    assert torch.equal(one.memory.means, other.memory.means)


# -- how it is trained -----------------------------------------------------------------------


def test_the_cosine_layer_knows_only_the_classes_of_the_session() -> None:
    torch.manual_seed(0)
    layer = SessionCosine(nn.Linear(4, 6))
    layer.restrict([1, 4])
    x = torch.randn(5, 4)
    cosines = functional.cosine_similarity(x[:, None], layer.weight[[1, 4]], dim=2)
    shares = layer(x).softmax(1)
    torch.testing.assert_close(shares[:, [1, 4]], cosines.softmax(1))
    assert not shares[:, [0, 2, 3, 5]].any()
    functional.cross_entropy(layer(x), torch.tensor([1, 4, 1, 4, 1])).backward()
    assert layer.sigma.item() == 1
    assert layer.sigma.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any(dim=1).tolist() == [False, True, False, False, True, False]


def test_the_cosine_layer_is_trained_on_the_first_classes(benchmark: Any) -> None:
    strategy = adapted(SimpleCIL, classifier("vit"), "adapter", classifier="cosine")
    trained: Any = strategy.model.classifier
    start = trained.weight.detach().clone()
    train_on(strategy, benchmark.train_stream)
    first = sorted(benchmark.train_stream[0].classes_in_this_experience)
    assert trained.present.nonzero().flatten().tolist() == first
    assert trained.sigma.item() != 1
    changed = (trained.weight != start).any(dim=1).nonzero().flatten().tolist()
    assert changed == first


def test_the_learning_rate_falls_as_torchs_cosine_does(benchmark: Any) -> None:
    model = build_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    seen: list[float] = []

    class Recorder:
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(strategy.optimizer.param_groups[0]["lr"])

    strategy = adapted(
        SLDA, model, "finetune", optimizer=optimizer, first_experience_epochs=5,
        train_mb_size=500, plugins=[EpochSchedule(cosine=True), Recorder()],
    )  # fmt: skip
    train_on(strategy, benchmark.train_stream)
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=5)
    expected = []
    for _ in range(5):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "backbone", "name"),
    [(APER, "vit", "adapter"), (APER, "conv4", "bn"), (SLDA, "vit", "vpt_deep"),
     (SLDA, "vit", "ssf")],
)  # fmt: skip
def test_after_an_interruption_it_goes_on_bit_for_bit(
    kind: Any, backbone: str, name: str, benchmark: Any, tmp_path: Path
) -> None:
    strategy = adapted(kind, classifier(backbone), name)
    assert_continues_bit_for_bit(strategy, benchmark, tmp_path)


# -- as published ----------------------------------------------------------------------------


def test_simplecil_gives_the_numbers_of_the_original_code_and_is_not_nmc() -> None:
    data = inputs()
    train = TensorData(data.train, data.train_labels)
    test = TensorData(data.test, data.test_labels)
    stream = nc_benchmark(train, test, 3, task_labels=False, shuffle=False).train_stream
    answers = {}
    for key, kind, settings in (
        ("simplecil_cosine", SimpleCIL, {}),
        ("nmc_euclid", NearestMean, {"normalize_input": True}),
    ):
        model = Classifier(nn.Identity(), nn.Linear(16, 6).double())
        strategy = kind(model=model, evaluator=quiet_evaluator(), **settings)
        train_on(strategy, stream)
        answers[key] = strategy.prototypes.logits(data.test)
        assert answers[key].argmax(1).tolist() == golden()["results"][key]["pred"]
    torch.testing.assert_close(
        answers["simplecil_cosine"].double(), scores("simplecil_cosine"), rtol=2e-6, atol=2e-6
    )
    differing = (answers["simplecil_cosine"] - answers["nmc_euclid"]).abs().max()
    assert differing > 0.1


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"adapt": "ssf", "first_experience_epochs": 0}, ValueError, "at least 1 with adapt=ssf"),
        ({"adapt": "ssf"}, ConfigError, r"adapt=ssf .*apply to a Net: choose from bn, finetune"),
        ({"adapt": "full"}, ConfigError, "unknown adaptation 'full': .*choose from adapter, bn"),
        ({"two_branches": True}, ValueError, r"two_branches=True with a Net: .*Classifier\("),
        ({"classifier": "cos"}, ValueError, "classifier='cos': expected 'linear' or"),
    ],
)
def test_impossible_settings_are_errors(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adapted(NearestMean, build_net(), **{"adapt": "finetune", **settings})


def test_only_a_linear_layer_gives_way_to_a_cosine_layer() -> None:
    model = Classifier(nn.Flatten(), nn.Sequential(nn.Linear(64, 6)))
    with pytest.raises(ValueError, match=r"layer is a Sequential: expected a torch\.nn\.Linear"):
        adapted(NearestMean, model, "finetune", classifier="cosine")
