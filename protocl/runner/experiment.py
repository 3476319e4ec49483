"""One experiment, from its configuration to its result."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from protocl.backbones import Backbone, save_weights
from protocl.config import ExperimentConfig, Setup
from protocl.data.augmentation.image_augmentation import TrainingAugmentation, named_augmentation
from protocl.errors import ConfigError, DataError, as_config_error
from protocl.io import provenance
from protocl.io.atomic import atomic_write, locked
from protocl.io.checkpoint import CheckpointFolder
from protocl.io.profile import PhaseLog
from protocl.metrics.history import History
from protocl.metrics.recorder import EvaluationRecorder
from protocl.runner.adapted_cache import AdaptedBackbones
from protocl.runner.folders import RESULT_FILE, exclusive, is_complete, read_result
from protocl.runner.prepare import prepare
from protocl.runner.result import backbone_of, build_result, memory_of

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoint"
BACKBONE = "backbone"


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: ``"data"``, ``"features"``, ``"train"``, ``"eval"`` or ``"report"``.
        experience: index of the experience, from 0; None before the first.
        n_experiences: number of experiences; None before the stream is built.
        epoch: index of the epoch, from 0, while training.
        n_epochs: epochs of this experience.
    """

    phase: str
    experience: int | None = None
    n_experiences: int | None = None
    epoch: int | None = None
    n_epochs: int | None = None


ProgressCallback = Callable[[Progress], None]


def run_experiment(
    config: ExperimentConfig,
    run_dir: Path,
    *,
    on_progress: ProgressCallback | None = None,
    feature_progress: bool = False,
) -> dict[str, Any]:
    """Run one experiment, or the rest of one that was interrupted.

    After each experience a checkpoint of everything is written to ``run_dir/checkpoint``. Called
    again with the same configuration and folder, it continues there and ends with the numbers
    that an undisturbed run ends with; on the CPU bit for bit.

    Args:
        config: what to run.
        run_dir: existing folder of the run (:func:`protocl.runner.folders.open_run`).
        on_progress: called at the start of each part.
        feature_progress: show a progress bar on standard error while features are computed.

    Returns:
        The content of ``result.json``.

    Raises:
        ProtoclError: the configuration, the data or a checkpoint does not allow the run.
    """
    with exclusive(run_dir):
        finished = read_result(run_dir)
        if finished is not None and is_complete(finished):
            _clear(run_dir)
            return finished
        gc.collect()  # strategies of earlier runs refer to themselves, and may hold gigabytes
        return _Run(config, run_dir, on_progress or _ignore, feature_progress).finish()


def resolve_device(name: str) -> torch.device:
    """The device that ``device=name`` means; ``"auto"`` is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name}: not available here ({str(error).splitlines()[0]}); "
            "use auto, cpu or cuda"
        ) from error
    return device


class EpochProgress:
    """Avalanche plugin that reports the start of each training epoch.

    Args:
        report: called with index and number of the epoch.
    """

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Report where the training stands."""
        self._report(strategy.clock.train_exp_epochs, strategy.train_epochs)


class _Run:
    """The state of one run; :meth:`finish` takes it from wherever it stands to its end."""

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        on_progress: ProgressCallback,
        feature_progress: bool,
    ) -> None:
        from avalanche.training.determinism.rng_manager import RNGManager

        from protocl.runner.tensorboard import EpochLoss, EventLogger

        self.config = config
        self.run_dir = run_dir
        self.on_progress = on_progress
        self.random = RNGManager
        self.checkpoints = CheckpointFolder(run_dir / CHECKPOINTS)
        self.released = CheckpointFolder(run_dir / CHECKPOINTS / BACKBONE)
        self.backbone: Backbone | None = None
        self.adapted = AdaptedBackbones(config.cache)
        self.feature_progress = feature_progress
        self.phases = PhaseLog()
        device = resolve_device(config.device)
        self.random.set_random_seeds(config.seed)
        self.prepared = prepare(config, device, self.phases, self._tell, feature_progress)
        self.events = EventLogger(run_dir)
        self.epochs = EpochProgress(lambda epoch, n: self._tell("train", epoch, n))
        self.loss = EpochLoss(self.events)
        self.shared = {
            **self.prepared.shared_objects(),
            "events": self.events,
            "epochs": self.epochs,
            "loss": self.loss,
        }
        if not self._continue(device):
            self._begin(device)

    @property
    def n_experiences(self) -> int:
        return len(self.prepared.benchmark.train_stream)

    def finish(self) -> dict[str, Any]:
        """Train and evaluate on the experiences that remain, then write the results."""
        try:
            for t in range(len(self.history.evaluations), self.n_experiences):
                self._learn(t)
                self._save()
            return self._conclude()
        finally:
            self.events.close()

    def _begin(self, device: torch.device) -> None:
        """Build the strategy for the first experience."""
        from protocl.runner.tensorboard import evaluation_plugin

        self.history = History()
        self.recorder = EvaluationRecorder()
        setup = Setup(
            model=self.prepared.model,
            feature_dim=self.prepared.feature_dim,
            n_classes=self.prepared.n_classes,
            device=device,
            seed=self.config.seed,
            plugins=[*self._augmentation(), self.recorder, self.epochs, self.loss],
            evaluator=evaluation_plugin(self.events),
            fingerprint=self.prepared.fingerprint,
        )
        with as_config_error(f"strategy={self.config.strategy.name}: "):
            self.strategy = self.config.strategy.build(setup)

    def _augmentation(self) -> list[TrainingAugmentation]:
        augmentation = named_augmentation(self.config.benchmark.augmentation)
        return [] if augmentation is None else [TrainingAugmentation(augmentation)]

    def _continue(self, device: torch.device) -> bool:
        """Take up the newest checkpoint that is whole; False where there is none."""
        if self.checkpoints.files():
            self.backbone = self.released.load_newest({}, device, _warn)
        images = self.prepared
        if self.backbone is not None:
            self._encode(self.backbone)
        state = self.checkpoints.load_newest(self.shared, device, _warn)
        if state is None:
            self.prepared, self.backbone = images, None
            return False
        self._check_origin(state)
        self.strategy, self.recorder = state["strategy"], state["recorder"]
        self.history = History.from_dict(state["history"])
        self.phases = PhaseLog(state["phases"] + self.phases.entries)
        torch.set_num_threads(state["threads"])  # sums depend on it in the last bit
        self.random.__setstate__(state["random"])
        self.events.purge(self.strategy.clock.train_iterations + 1)
        self.events.log_curve(self.history.stream_accuracy)
        return True

    def _check_origin(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint whose continuation would not be the same run."""
        if state["data_hash"] != self.prepared.data_hash:
            raise DataError(
                f"{self.run_dir}: the data of benchmark '{self.config.benchmark.name}' changed "
                "since the run began; restore it, or start anew without resume=true"
            )
        present = provenance.versions()
        if state["versions"] != present:
            changed = sorted(dict(state["versions"].items() ^ present.items()))
            raise ConfigError(
                f"{self.run_dir}: {', '.join(changed)} changed version since the run began; "
                "install those named in its result.json, or start anew without resume=true"
            )

    def _learn(self, t: int) -> None:
        """Train on experience ``t`` and evaluate on the test stream up to it."""
        benchmark = self.prepared.benchmark
        self._tell("train")
        adapts = t == 0 and self.config.strategy.adaptation is not None
        with self.phases.phase("train", t):
            if adapts:
                self._adapt()
            else:
                self.strategy.train(benchmark.train_stream[t])
        if adapts and self.n_experiences > 1:
            self._release_backbone()
        self._tell("eval")
        with self.phases.phase("eval", t):
            self.strategy.eval(self.prepared.benchmark.test_stream[: t + 1])
        self.history.append(self.recorder.last)
        self.events.log_curve(self.history.stream_accuracy[t:], first=t)

    def _adapt(self) -> None:
        """Train on the first experience, with the backbone that another run adapted if any has."""
        device, given = self.strategy.device, self.prepared
        path = self.adapted.path(self.config, given.fingerprint, given.data_hash, device)
        with locked(path):
            backbone = self.adapted.load(path, device)
            if backbone is not None:
                self.strategy.adopt_backbone(backbone)
            self.strategy.train(given.benchmark.train_stream[0])
            if backbone is None:
                self.adapted.save(path, self.strategy.model.backbone)

    def _release_backbone(self) -> None:
        """Go on with features where the first experience has made the backbone what it stays.

        It is written first: a checkpoint refers to the features as to any data, so that whoever
        continues from it has to be able to compute them anew.
        """
        backbone = self.strategy.release_backbone()
        self.released.save(0, backbone, {})
        self._encode(backbone)
        self.backbone = backbone

    def _encode(self, backbone: Backbone) -> None:
        self._tell("features")
        self.prepared = self.prepared.encoded(
            self.config, backbone, self.phases, self.feature_progress
        )
        self.shared |= self.prepared.shared_objects("encoded_")

    def _save(self) -> None:
        """Write the result so far, then the checkpoint from which the run can continue."""
        self.events.flush()
        self._write(self._result(complete=False))
        state = {
            "strategy": self.strategy,
            "recorder": self.recorder,
            "history": self.history.to_dict(),
            "phases": self.phases.entries,
            "random": self.random.__getstate__(),
            "threads": torch.get_num_threads(),
            "data_hash": self.prepared.data_hash,
            "versions": provenance.versions(),
        }
        self.checkpoints.save(len(self.history.evaluations) - 1, state, self.shared)

    def _conclude(self) -> dict[str, Any]:
        """Write memory, weights and plots, last of all the complete result."""
        from protocl.report import plot_run

        self._tell("report")
        memory = memory_of(self.strategy)
        backbone = self.backbone or backbone_of(self.strategy)
        if memory is not None:
            memory.save(self.run_dir / "memory.safetensors")
        if self.config.strategy.trains_backbone and backbone is not None:
            save_weights(backbone, self.run_dir / "backbone.safetensors")
        result = self._result(complete=True)
        plot_run(result, self.run_dir / "plots")
        self._write(result)
        _clear(self.run_dir)
        return result

    def _result(self, *, complete: bool) -> dict[str, Any]:
        return build_result(
            self.config,
            self.prepared,
            self.strategy,
            self.history,
            self.phases,
            complete=complete,
        )

    def _write(self, result: dict[str, Any]) -> None:
        atomic_write(self.run_dir / RESULT_FILE, json.dumps(result, indent=1, allow_nan=False))

    def _tell(self, phase: str, epoch: int | None = None, n_epochs: int | None = None) -> None:
        if phase in ("data", "features"):
            self.on_progress(Progress(phase))
            return
        t = len(self.history.evaluations)
        self.on_progress(Progress(phase, t, self.n_experiences, epoch, n_epochs))


def _clear(run_dir: Path) -> None:
    """Delete the checkpoints of a run whose result is written."""
    for folder in (run_dir / CHECKPOINTS / BACKBONE, run_dir / CHECKPOINTS):
        CheckpointFolder(folder).clear()


def _warn(error: DataError) -> None:
    logger.warning("%s; continuing from the one before it", error)


def _ignore(progress: Progress) -> None:
    """Report to nobody."""
