"""One training of an embedding, from its configuration to its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from protocl.backbones import build_backbone, fingerprint, save_weights
from protocl.config.arguments import Settings
from protocl.config.compose import build
from protocl.data.arrays import as_images
from protocl.data.augmentation.distortion import Distortion
from protocl.errors import DivergedError, two_samples_a_batch
from protocl.io.names import WEIGHTS_FILE
from protocl.pretraining.base_classes import BaseClasses, base_classes, nearest_mean_accuracy
from protocl.pretraining.config import OBJECTIVES, Objective, PretrainConfig
from protocl.registry import BACKBONES, BENCHMARKS
from protocl.runner.context import RunContext
from protocl.runner.kind import Kind

if TYPE_CHECKING:
    from rich.console import Console

    from protocl.runner.together.context import SharedContext
    from protocl.trackers import Trackers

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

    def __str__(self) -> str:
        held_out = "" if self.accuracy is None else f", held out {self.accuracy:.4f}"
        return f"loss {self.loss:.4f}{held_out}, {self.seconds:.1f} s"


class PretrainingKind(Kind[PretrainConfig]):
    """Training of an embedding; a checkpoint is written after every epoch.

    It writes ``backbone.safetensors``, which ``backbone.checkpoint=`` takes everywhere else. Each
    epoch draws from generators seeded by run and epoch, so that a resumed training sees what an
    uninterrupted one would.
    """

    name = "pretraining"

    def compose(self, settings: Settings) -> PretrainConfig:
        """See :class:`protocl.runner.kind.Kind`."""
        groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES, "objective": OBJECTIVES}
        defaults = {"benchmark": "digits", "backbone": "conv4", "objective": "cosine"}
        return build(PretrainConfig, settings, groups, defaults)

    def execute(self, run: RunContext[PretrainConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        return Pretraining(run).finish()

    def execute_together(self, run: SharedContext[PretrainConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        from protocl.pretraining.together import SharedPretraining

        return SharedPretraining(run).finish()

    def show(self, folders: Sequence[Path], output: Path | None, console: Console) -> None:
        """Nothing: there are no answers to compare."""


PRETRAINING = PretrainingKind()
pretrain = PRETRAINING.carry_out


class Pretraining:
    """The state of one training.

    Args:
        run: its surroundings.
    """

    def __init__(self, run: RunContext[PretrainConfig]) -> None:
        config = run.config
        self.run, self.config, self.device = run, config, run.device
        data = run.load_data()
        self.class_names = data.class_names
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

    def finish(self) -> dict[str, Any]:
        """Train the epochs that remain and write the weights."""
        state = self.run.take_up()
        if state is not None:
            self._restore(state)
        with self.run.events(len(self.reports)) as events:
            while len(self.reports) < self.config.epochs:
                done = len(self.reports)
                self._tell(done)
                with (
                    self.run.phases.phase("train", done),
                    two_samples_a_batch("objective.batch_size"),
                ):
                    report = self._epoch(done + 1)
                self.reports.append(report)
                self._log(events, report)
                self.run.write(self._result(), complete=False)
                self.run.save(done + 1, self._state())
                self._tell(done + 1, report)
        file = self.run.folder / WEIGHTS_FILE
        self._write_weights(file)
        self.run.tell("report", report=f"wrote {file}")
        return self._result()

    def _write_weights(self, file: Path) -> None:
        save_weights(self.backbone, file)

    def _tell(self, done: int, report: EpochReport | None = None) -> None:
        self.run.tell("train", done, total=self.config.epochs, unit="epoch", report=report)

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
        self._settle()
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
        features = self._features(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss = self.objective.loss(features, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features

    def _settle(self) -> None:
        """What there is to do between the steps of an epoch and its evaluation: nothing."""

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

    def _log(self, events: Trackers, report: EpochReport) -> None:
        events.add_scalar("pretraining/loss", report.loss, report.epoch)
        if report.accuracy is not None:
            events.add_scalar("pretraining/held_out_accuracy", report.accuracy, report.epoch)

    def _result(self) -> dict[str, Any]:
        config, classes = self.config, self.classes
        return {
            "benchmark": {
                "name": config.benchmark.name,
                "n_experiences": 1,
                "classes_per_experience": [classes.ids],
                "data_hash": self.run.data_hash,
                "n_train": len(classes.images),
                "class_names": self.class_names,
            },
            "backbone": {
                "name": config.backbone.name,
                "fingerprint": fingerprint(self.backbone),
                "feature_dim": self.backbone.feature_dim,
                "parameters": sum(p.numel() for p in self.backbone.parameters()),
            },
            self.run.kind: {
                "base_classes": classes.ids,
                "held_out_classes": classes.held_out_ids,
                "epochs": [asdict(report) for report in self.reports],
            },
        }


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
