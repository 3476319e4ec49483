"""The first session's backbone, adapted by several processes or found, and the same on all."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from protocl.backbones import Backbone
from protocl.config import ExperimentConfig
from protocl.data.augmentation.image_augmentation import TrainingAugmentation, named_augmentation
from protocl.distributed.collectives import of_first
from protocl.errors import two_samples_a_batch
from protocl.io import checkpoint
from protocl.io.checkpoint import CheckpointFolder
from protocl.runner.adapted_cache import AdaptedBackbones
from protocl.runner.context import CHECKPOINTS
from protocl.runner.prepare import Prepared
from protocl.runner.together.context import SharedContext

BACKBONE = "backbone"


def adapted_backbone(run: SharedContext[ExperimentConfig], prepared: Prepared) -> Backbone:
    """The backbone as the first experience leaves it.

    It is that of the run's checkpoint or of another run where there is one. Else all processes
    train it, and go on with the one of the first, which is kept in both places.

    Args:
        run: of a strategy that adapts its backbone.
        prepared: stream and model before it.
    """
    released = CheckpointFolder(run.folder / CHECKPOINTS / BACKBONE)
    others = AdaptedBackbones(run.config.cache)
    path = others.path(
        run.config, prepared.fingerprint, prepared.data_hash, run.device, processes=run.size
    )

    def find() -> bytes | None:
        found = released.load_newest({}, run.device) or others.load(path, run.device)
        return None if found is None else _packed(found)

    packed = of_first(find)
    if packed is None:
        backbone = _adapt(run, prepared)
        packed = of_first(lambda: _packed(backbone))
        of_first(lambda: others.save(path, backbone))
    backbone = _unpacked(packed, run)
    of_first(lambda: released.save(0, backbone, {}))
    return backbone


def _adapt(run: SharedContext[ExperimentConfig], prepared: Prepared) -> Backbone:
    from avalanche.training.plugins import EvaluationPlugin

    augmentation = named_augmentation(run.config.benchmark.augmentation)
    plugins = [] if augmentation is None else [TrainingAugmentation(augmentation)]
    run.tell("train")
    with run.phases.phase("adapt"):
        experience = prepared.benchmark.train_stream[0]
        # Its losses are those of shares: nobody measures them.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No loggers specified")
            setup = prepared.setup(run, plugins, EvaluationPlugin())
        with two_samples_a_batch("strategy.train_mb_size"):
            backbone: Backbone = run.config.strategy.adapt_together(setup, experience)
        return backbone


def _packed(backbone: Backbone) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / BACKBONE, backbone)
        return (Path(folder) / BACKBONE).read_bytes()


def _unpacked(packed: bytes, run: SharedContext[ExperimentConfig]) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / BACKBONE).write_bytes(packed)
        backbone: Backbone = checkpoint.load(Path(folder) / BACKBONE, device=run.device)
        return backbone
