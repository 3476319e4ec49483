"""Adapted backbones on disk: in a sweep over heads each adaptation is trained once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import torch

from protocl.backbones import Backbone
from protocl.config import ExperimentConfig
from protocl.errors import DataError
from protocl.io import checkpoint, provenance
from protocl.io.atomic import discard_partial

logger = logging.getLogger(__name__)

# Settings of a benchmark that say where the data is, not what it is.
_PLACES = ("path", "download")


class AdaptedBackbones:
    """Keeps the backbones that first experiences adapted, found by all that decides them.

    That is the data and stream, the backbone and its weights, the settings of the adaptation, the
    seed, device, threads and versions: what is found is, bit for bit on a CPU, what the training
    would give. The files hold Python objects (:mod:`.checkpoint`) and may be deleted at any
    time.

    Args:
        root: folder; created when needed.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser() / "adapted"

    def path(
        self,
        config: ExperimentConfig,
        fingerprint: str,
        data_hash: str,
        device: torch.device,
        *,
        processes: int = 1,
    ) -> Path:
        """Where the backbone is kept that a run adapts.

        Args:
            config: of the run.
            fingerprint: of the backbone as given.
            data_hash: of the data.
            device: where it is adapted.
            processes: that share each batch, in whose order gradients are added.
        """
        benchmark = dataclasses.asdict(config.benchmark)
        decides: dict[str, Any] = {
            "adaptation": config.strategy.adaptation,
            "benchmark": {k: v for k, v in benchmark.items() if k not in _PLACES},
            "data": data_hash,
            "backbone": fingerprint,
            "seed": config.seed,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "format": checkpoint.FORMAT,
            "versions": provenance.versions(),
        }
        if processes > 1:
            decides["processes"] = processes
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return self.root / f"{digest[:32]}.ckpt"

    def load(self, path: Path, device: torch.device) -> Backbone | None:
        """The backbone, or None if it is absent or (after a warning) damaged."""
        if not path.exists():
            return None
        try:
            return cast(Backbone, checkpoint.load(path, device=device))
        except DataError as error:
            logger.warning("%s; adapting anew", error)
            return None

    def save(self, path: Path, backbone: Backbone) -> None:
        """Keep ``backbone``; only whoever holds the lock of ``path`` may do so."""
        discard_partial(path)
        checkpoint.save(path, backbone)
