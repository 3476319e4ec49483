"""Nothing mixes tensors of two devices, and results are those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import Tensor, nn

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.federation.reconnaissance import run
from protocl.pretraining import run as pretraining
from protocl.registry import HEADS, STRATEGIES
from protocl.runner import context
from protocl.runner.folders import create_run
from protocl.strategies.exemplars.herding import herd
from protocl.strategies.exemplars.medoids import medoids
from protocl.streaming import StreamConfig, stream
from protocl.streaming import run as streaming
from tests.data.shards.written import pictures, write_tar
from tests.second_device import DeviceMixError, Far, second_device
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import digits, outputs_at_eval

GENERATOR = torch.Generator().manual_seed(0)
FEATURES, QUERIES = torch.rand(120, 6, generator=GENERATOR), torch.rand(9, 6, generator=GENERATOR)
LABELS = torch.arange(120) % 5


class TestTheDeviceItself:
    def test_holds_numbers_and_computes_gradients(self) -> None:
        with second_device() as there:
            x = torch.tensor([1.0, 2.0, 3.0]).to(there).requires_grad_()
            (x.square().sum() * torch.tensor(2.0)).backward()
            x.detach()[[0, 2]] = 7.0
            assert isinstance(x.grad, Far)
            assert x.grad.tolist() == [4.0, 8.0, 12.0]
            assert torch.equal(x.detach().cpu(), torch.tensor([7.0, 2.0, 7.0]))

    @pytest.mark.parametrize(
        "mix",
        [
            lambda there: torch.ones(3, device=there) + torch.ones(3),
            lambda there: torch.ones(3)[torch.zeros(1, dtype=torch.int64, device=there)],
            lambda there: torch.ones(2, 3, device=there) @ torch.ones(3, 2),
            lambda there: torch.cat([torch.ones(1), torch.ones(1, device=there)]),
            lambda there: torch.rand(3, device=there, generator=torch.Generator()),
            lambda there: torch.ones(3, device=there).numpy(),
            lambda there: nn.Linear(3, 2)(torch.ones(1, 3, device=there)),
            lambda there: torch.ones(2, 2, dtype=torch.int64, device=there).mm(
                torch.ones(2, 2, dtype=torch.int64, device=there)
            ),
        ],
    )
    def test_refuses_what_a_real_one_would(self, mix: Any) -> None:
        with second_device() as there, pytest.raises(DeviceMixError):
            mix(there)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_memories(level: Any, exact: bool) -> None:
    def memory_on(device: torch.device) -> PrototypeMemory:
        x, y = FEATURES.to(device), LABELS.to(device)
        memory = PrototypeMemory(6, level, exact=exact).to(device).update(x[:70], y[:70])
        memory.merge(PrototypeMemory(6, level, exact=exact).to(device).update(x, y))
        memory.subtract(PrototypeMemory(6, level, exact=exact).to(device).update(x[:70], y[:70]))
        return memory if level == "shared" else memory.forget(torch.tensor([3], device=device))

    with second_device() as there:
        found = memory_on(there)
        assert isinstance(found.sums, Far)
        state = {name: buffer.cpu() for name, buffer in found.named_buffers()}
    for name, expected in memory_on(torch.device("cpu")).named_buffers():
        assert torch.equal(state[name], expected), name


@pytest.mark.parametrize("name", HEADS.names())
def test_heads(name: str) -> None:
    def answers_on(device: torch.device) -> tuple[Tensor, ...]:
        head = HEADS.get(name)()
        memory = head.new_memory(6).to(device).update(FEATURES.to(device), LABELS.to(device))
        head, queries = head.to(device).fit(memory), QUERIES.to(device)
        return head(queries).cpu(), head.predict(queries).cpu(), head.topk(queries, 2)[1].cpu()

    expected = answers_on(torch.device("cpu"))
    with second_device() as there:
        found = answers_on(there)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("choose", [herd, medoids])
def test_exemplars(choose: Any) -> None:
    with second_device() as there:
        found = choose(FEATURES.to(there), 10).tolist()
    assert found == choose(FEATURES, 10).tolist()


SMALL = {
    "aper": ["session.adapt=finetune", "first_experience_epochs=1"],
    "il2a": ["plugin.ratio=0.1"],
    "ranpac": ["head.projection=50"],
    "icarl_nme": ["mem_size=30"],
    "protocl": ["plugin.mem_size=30"],
    "replay": ["mem_size=30"],
}
FURTHER = [
    ("aper", ["session.adapt=bn", "first_experience_epochs=1"]),
    ("fecam", ["first_experience_epochs=1"]),
    ("fetril", ["svm_c=1"]),
    ("naive", ["answer=lda", "drift=sdc"]),
    ("naive", ["answer=nearest_mean", "drift=ldc"]),
    ("naive", ["answer=ridge", "drift=dpcr"]),
    ("naive", ["answer=lda", "drift=sdc", "drift.metric=efm", "drift.sigma=0.2"]),
    ("naive", ["answer=nearest_mean", "drift=adc"]),
    ("napa_vq", ["plugin.answer=distance", "drift=ldc"]),
    ("prd", ["loss.relation=released", "views=crop_flip"]),
    (
        "protocl",
        [
            f"plugin.{s}"
            for s in ("mem_size=30", "selection=medoids", "refit=memory", "answer=full")
        ],
    ),
    ("protocl", [f"plugin.{s}" for s in ("mem_size=30", "distillation=1", "covariance=full")]),
    ("replay", ["mem_size=30", "selection=medoids"]),
]
AVALANCHES = {
    "avalanche_fecam": "ends in its own error with such a network, on the CPU as well",
    "icarl": "Avalanche's own code reads tuples of lists as indices, past the simulation",
    "lwf": "Avalanche's own code reads tuples of lists as indices, past the simulation",
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, SMALL.get(name, [])) for name in STRATEGIES.names()), *FURTHER],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_strategies(name: str, settings: list[str]) -> None:
    if name in AVALANCHES:
        pytest.skip(AVALANCHES[name])
    expected = _answers(name, settings, torch.device("cpu"))
    with second_device() as there:
        found = _answers(name, settings, there)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def _answers(name: str, settings: list[str], device: torch.device) -> Tensor:
    """Logits for all test samples after two experiences on ``device``."""
    torch.manual_seed(0)
    train, test = digits(train=True), digits(train=False)
    benchmark = nc_benchmark(train, test, 2, task_labels=False, seed=0)
    backbone = build_backbone(BackboneConfig(name="conv4", width=4), (1, 8, 8), 0)
    model = Classifier(backbone, nn.Linear(backbone.feature_dim, 6)).to(device)
    config = configured(name, *(f"strategy.{setting}" for setting in settings))
    setup = setup_of(train, model=model, device=device, feature_dim=backbone.feature_dim)
    strategy = config.build(setup)
    strategy.train_epochs = min(1, strategy.train_epochs)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    outputs = outputs_at_eval(strategy, benchmark.test_stream)
    return torch.cat([output.cpu() for output in outputs])


@pytest.mark.parametrize("method", ["prototypes", "fedavg"])
def test_reconnaissance(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accuracies_on(device: torch.device) -> list[float]:
        settings = [f"method={method}", "backbone=conv4", "backbone.width=4"]
        folders = [f"output={tmp_path}", f"cache={tmp_path / device.type}"]
        (config,) = run.RECONNAISSANCE.load(["reconnaissance=digits", *settings, *folders])
        monkeypatch.setattr(context, "resolve_device", lambda name: device)
        result = run.run_reconnaissance(config, create_run(config))
        return list(result["metrics"]["stream_accuracy"])

    expected = accuracies_on(torch.device("cpu"))
    with second_device() as there:
        assert accuracies_on(there) == pytest.approx(expected, abs=0.01)


class _Plain(torch.optim.AdamW):
    """Without the fused kernel, which the borrowed name has not."""

    def __init__(self, *args: Any, fused: bool, **settings: Any) -> None:
        super().__init__(*args, **settings)


@pytest.mark.parametrize("objective", ["cosine", "episodes"])
def test_pretraining(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["benchmark=digits", "benchmark.train_per_class=9", "backbone=conv4", "epochs=1",
             "backbone.width=4", f"objective={objective}", f"output={tmp_path}"]  # fmt: skip
    words += ["objective.ways=3", "objective.queries=3"] if objective == "episodes" else []
    (config,) = pretraining.PRETRAINING.load(words)
    monkeypatch.setattr(torch.optim, "AdamW", _Plain)
    with second_device() as there:
        monkeypatch.setattr(context, "resolve_device", lambda name: there)
        result = pretraining.pretrain(config, create_run(config))
    assert result["status"] == "complete"


def test_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", pictures(range(20)))
    config = StreamConfig(backbone=BackboneConfig(name="conv4", width=4), batch_size=8)
    stream([str(tmp_path / "a.tar")], tmp_path / "expected", config)
    with second_device() as there:
        monkeypatch.setattr(streaming, "resolve_device", lambda name: there)
        stream([str(tmp_path / "a.tar")], tmp_path / "found", config)
    found, expected = (
        PrototypeMemory.load(tmp_path / name / "memory.safetensors")
        for name in ("found", "expected")
    )
    assert torch.equal(found.sums, expected.sums)
