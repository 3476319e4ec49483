"""One training of an embedding, from its configuration to its weights."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from protocl.backbones import build_backbone, fingerprint, save_weights
from protocl.config.validation import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE, require
from protocl.data import load_data
from protocl.data.arrays import as_images
from protocl.data.augmentation.distortion import Distortion
from protocl.errors import DivergedError
from protocl.io import checkpoint, provenance
from protocl.io.atomic import atomic_write
from protocl.pretraining.base_classes import BaseClasses, base_classes, nearest_mean_accuracy
from protocl.pretraining.config import Objective, PretrainConfig
from protocl.runner.experiment import resolve_device
from protocl.runner.folders import RESULT_FILE, exclusive, is_complete, read_result

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

BACKBONE_FILE = "backbone.safetensors"
CHECKPOINT_FILE = "training.ckpt"
ORIENTATIONS = 4


@dataclass(frozen=True)
class EpochReport:
    """What one epoch brought.

    Attributes:
        epoch: its number, from 1.
        loss: mean over its batches.
        accuracy: of nearest class means on the classes held out; None without any.
        seconds: wall time.
    """

    epoch: int
    loss: float
    accuracy: float | None
    seconds: float


OnEpoch = Callable[[EpochReport], None]


def pretrain(
    config: PretrainConfig, run_dir: Path, *, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """Train an embedding, or continue an interrupted training after its last whole epoch.

    Writes ``backbone.safetensors``, which ``backbone.checkpoint=`` takes everywhere else,
    ``result.json`` and TensorBoard events. Each epoch draws from generators seeded by run and
    epoch, so that a resumed training sees what an uninterrupted one would.

    Args:
        config: what to train, on what.
        run_dir: existing folder of the run (:func:`protocl.runner.folders.open_run`).
        on_epoch: told of every epoch.

    Returns:
        The content of ``result.json``.

    Raises:
        ProtoclError: the configuration, the data or the checkpoint does not allow it.
    """
    with exclusive(run_dir):
        finished = read_result(run_dir)
        if finished is not None and is_complete(finished):
            return finished
        return Pretraining(config, run_dir).finish(on_epoch or (lambda report: None))


class Pretraining:
    """The state of one training.

    Args:
        config: what to train, on what.
        run_dir: where its files are.
    """

    def __init__(self, config: PretrainConfig, run_dir: Path) -> None:
        _check(config)
        self.config = config
        self.run_dir = run_dir
        self.device = resolve_device(config.device)
        data = load_data(config.benchmark)
        self.classes: BaseClasses = base_classes(data, config)
        self.backbone = build_backbone(config.backbone, data.input_shape, config.seed)
        self.backbone.to(self.device)
        self.backbone.to(memory_format=torch.channels_last)
        self.images = self.classes.images.to(self.device)
        n_classes = len(self.classes.ids)
        self.labels = self.classes.labels
        if config.rotations:
            # Sample 4 i + k is image i turned k times, of class row 4 c + k.
            turns = torch.arange(ORIENTATIONS).repeat(len(self.images))
            self.labels = self.labels.repeat_interleave(ORIENTATIONS) * ORIENTATIONS + turns
            n_classes *= ORIENTATIONS
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            module = config.objective.build(self.backbone.feature_dim, n_classes).to(self.device)
        self.module = module
        self.objective = cast(Objective, module)
        self.distort = Distortion(**asdict(config.distortion))
        self.reports: list[EpochReport] = []
        self._prepare_optimizer()

    def finish(self, on_epoch: OnEpoch) -> dict[str, Any]:
        """Train the epochs that remain and write the results."""
        from torch.utils.tensorboard import SummaryWriter

        file = self.run_dir / CHECKPOINT_FILE
        if file.is_file():
            self._restore(checkpoint.load(file, device=self.device))
        with SummaryWriter(str(self.run_dir)) as events:
            while len(self.reports) < self.config.epochs:
                report = self._epoch(len(self.reports) + 1)
                self.reports.append(report)
                self._log(events, report)
                checkpoint.save(file, self._state())
                on_epoch(report)
        save_weights(self.backbone, self.run_dir / BACKBONE_FILE)
        result = self._result()
        atomic_write(self.run_dir / RESULT_FILE, json.dumps(result, indent=1))
        file.unlink()
        return result

    # -- an epoch ---------------------------------------------------------------------------

    def _epoch(self, number: int) -> EpochReport:
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + number)
        total = torch.zeros((), device=self.device)
        self.backbone.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed * 100_003 + number)
            for rows, targets in self.objective.batches(self.labels, generator):
                total += self._step(rows.to(self.device), targets.to(self.device))
        loss = float(total) / self.objective.batches_per_epoch(self.labels)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of epoch {number} is {loss}: the training diverged; lower lr"
            )
        accuracy = nearest_mean_accuracy(self.backbone, self.classes)
        return EpochReport(number, loss, accuracy, time.perf_counter() - began)

    def _step(self, rows: Tensor, targets: Tensor) -> Tensor:
        images = self.distort(self._images(rows))
        half = self.backbone.precision == "bfloat16"
        features = self.backbone(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss = self.objective.loss(features, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _images(self, rows: Tensor) -> Tensor:
        if not self.config.rotations:
            return as_images(self.images[rows])
        return turned(as_images(self.images[rows // ORIENTATIONS]), rows % ORIENTATIONS)

    # -- before and after -------------------------------------------------------------------

    def _prepare_optimizer(self) -> None:
        config = self.config
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.backbone.parameters()), "weight_decay": config.weight_decay},
                {"params": list(self.module.parameters()), "weight_decay": 0.0},
            ],
            lr=config.lr,
            fused=True,
        )
        steps = config.epochs * self.objective.batches_per_epoch(self.labels)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=steps, pct_start=config.warmup
        )

    def _parts(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "objective": self.module,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def _state(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        return state | {"reports": [asdict(report) for report in self.reports]}

    def _restore(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.reports = [EpochReport(**report) for report in state["reports"]]

    def _log(self, events: SummaryWriter, report: EpochReport) -> None:
        events.add_scalar("pretraining/loss", report.loss, report.epoch)
        if report.accuracy is not None:
            events.add_scalar("pretraining/held_out_accuracy", report.accuracy, report.epoch)

    def _result(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "pretraining",
            "status": "complete",
            "name": config.name,
            "seed": config.seed,
            "base_classes": self.classes.ids,
            "held_out_classes": self.classes.held_out_ids,
            "backbone": {
                "name": config.backbone.name,
                "fingerprint": fingerprint(self.backbone),
                "feature_dim": self.backbone.feature_dim,
                "parameters": sum(p.numel() for p in self.backbone.parameters()),
            },
            "epochs": [asdict(report) for report in self.reports],
            "versions": provenance.versions(),
            "git": provenance.git_state(),
            "machine": provenance.machine(config.device, torch.get_num_threads()),
        }


def _check(config: PretrainConfig) -> None:
    require(
        config, "",
        epochs=AT_LEAST_1, lr=POSITIVE, warmup=SHARE, weight_decay=NOT_NEGATIVE,
    )  # fmt: skip
    require(
        config.distortion, "distortion.",
        degrees=NOT_NEGATIVE, shear=NOT_NEGATIVE, scale=BELOW_1, shift=NOT_NEGATIVE,
        elastic=NOT_NEGATIVE, flip=SHARE,
    )  # fmt: skip


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Square images ``(B, C, S, S)``, each turned by its number of quarter turns ``(B,)``.

    Raises:
        ValueError: they are not square.
    """
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(
            f"images of shape {tuple(images.shape)} cannot be turned: expected square ones; "
            "set rotations=false"
        )
    views = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(ORIENTATIONS)])
    return views[turns, torch.arange(len(images), device=images.device)]
