"""No training step lets the host wait for an accelerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import nn

from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.strategies.training.views import named_views
from tests.host_syncs import StepWatch, host_syncs
from tests.second_device import Far, second_device
from tests.strategies.frozen.test_base import configured, setup_of
from tests.strategies.small import digits


class TestTheCounter:
    @pytest.mark.parametrize(
        "wait",
        [
            lambda x: x.sum().item(),
            lambda x: bool((x > 1).any()),
            lambda x: x.tolist(),
            lambda x: x.nonzero(),
            lambda x: x[x > 1],
            lambda x: x.unique(),
            lambda x: x.cpu(),
            lambda x: torch.ones(3).to(x.device),
            lambda x: torch.equal(x, x),
            lambda x: x[torch.tensor([0, 2])],
            lambda x: torch.isin(x, x),
            lambda x: torch.tensor(1.0, device=x.device),
        ],
    )
    def test_notices(self, wait: Any) -> None:
        with second_device() as there, host_syncs() as syncs:
            x = torch.arange(3.0, device=there)
            wait(x)
        assert len(syncs.found) == 1

    def test_lets_pass(self) -> None:
        with second_device() as there, host_syncs() as syncs:
            x = torch.arange(3.0, device=there)
            x[x > 1] = 0.0
            torch.where(x > 1, x, 2.0).sum()
            x.index_add_(0, torch.zeros(2, dtype=torch.int64, device=there), x[:2] * 2)
            torch.ones(3).to(there, non_blocking=True)
            torch.ones(3).nonzero()
        assert syncs.found == []


@pytest.mark.parametrize("views", ["augmented", "crop_flip"])
def test_augmentation_on_the_device(views: str) -> None:
    with second_device() as there, host_syncs() as syncs:
        images = torch.rand(4, 3, 16, 16).to(there, non_blocking=True)
        shown = named_views(views)(images)
        assert isinstance(shown, Far)
    assert shown.shape == (8, 3, 16, 16)
    assert syncs.found == []


SETTINGS = {
    "il2a": ["plugin.ratio=0.1"],
    "icarl_nme": ["mem_size=30"],
    "protocl": ["plugin.mem_size=30"],
    "replay": ["mem_size=30"],
    "aper": ["session.adapt=finetune", "first_experience_epochs=1"],
}
TRAINED = (
    "naive", "replay", "cumulative", "icarl_nme", "aper", "fetril", "il2a", "napa_vq", "pass",
    "prd", "protocl",
)  # fmt: skip
"""Those that train a network, less ``ewc`` (Avalanche's own penalty reads the device once a step)
and those of Avalanche that the simulation cannot run (see ``test_second_device.py``)."""


@pytest.mark.parametrize("name", TRAINED)
def test_steps_of(name: str) -> None:
    with second_device() as there, host_syncs() as syncs:
        torch.manual_seed(0)
        train = digits(train=True)
        benchmark = nc_benchmark(train, digits(train=False), 2, task_labels=False, seed=0)
        backbone = build_backbone(BackboneConfig(name="conv4", width=4), (1, 8, 8), 0)
        model = Classifier(backbone, nn.Linear(backbone.feature_dim, 6)).to(there)
        watch = StepWatch(syncs)
        setup = setup_of(
            train, model=model, device=there, feature_dim=backbone.feature_dim, plugins=[watch]
        )
        settings = [f"strategy.{setting}" for setting in SETTINGS.get(name, [])]
        strategy = configured(name, *settings).build(setup)
        strategy.train_epochs = min(1, strategy.train_epochs)
        strategy.train_mb_size = _whole([len(e.dataset) for e in benchmark.train_stream])
        for experience in benchmark.train_stream:
            strategy.train(experience)
    assert watch.steps > 1
    assert watch.found == []


def _whole(sizes: list[int]) -> int:
    """A size of mini-batches that leaves none of a single sample, which BatchNorm refuses."""
    epochs = [*sizes, sum(sizes), *(size + 30 for size in sizes)]
    return next(size for size in range(36, 90) if all(samples % size > 1 for samples in epochs))
