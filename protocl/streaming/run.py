"""From shards to a model: read, encode, sum, and write, all of it or none."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocl.backbones import BackboneConfig, fingerprint
from protocl.backbones.batch_size import default_batch_size
from protocl.backbones.features import frozen
from protocl.data.readers.values import Label
from protocl.data.shards.decoding import Wanted, decoded_sample
from protocl.data.shards.layout import of_one_layout
from protocl.data.shards.shard import Fault, Shard
from protocl.data.shards.sources import shards_of
from protocl.errors import ConfigError, DataError
from protocl.heads.base import Head
from protocl.io.atomic import atomic_write, is_occupied
from protocl.io.progress import progress_bar
from protocl.memory import PrototypeMemory
from protocl.model.changes.owner import held
from protocl.model.classifier import PrototypeClassifier
from protocl.model.description import DESCRIPTION
from protocl.model.encoder import Encoder
from protocl.model.folder import save_model
from protocl.model.head_parameters import built
from protocl.runner.context import resolve_device
from protocl.streaming.accumulator import Accumulator
from protocl.streaming.encoding import encoding
from protocl.streaming.progress import PROGRESS, Progress, ProgressFolder
from protocl.streaming.reading import Portions, first_sample
from protocl.streaming.settings import StreamConfig

logger = logging.getLogger(__name__)

REPORT = "stream.json"
_VECTORS = 4096
"""Vectors a portion: they are small, and a portion costs as much as hundreds of them."""
_LOGGED = 10
"""Faults that are told as they come; the rest are counted, and told in the report."""


def stream(sources: Sequence[str], model: Path, config: StreamConfig) -> Progress:
    """Write a model of all samples in ``sources``, each counted once.

    Sums are in fixed point and portions end where shards end, so that the model is the same bits
    whatever the number of workers, the order of shards, and how often it was interrupted. Progress
    lies in ``MODEL.streaming/`` until the model is written.

    Args:
        sources: as :func:`.shards_of` takes them.
        model: folder to be made.
        config: how.

    Returns:
        What was read.

    Raises:
        ConfigError: a setting does not fit, the model is there, or progress is and ``resume`` is
            not set, or was made with other settings.
        DataError: a source is absent; or an entry cannot be read, and ``on_error`` is ``"stop"``.
    """
    busy = f"{model} is being made or changed by another process: wait until that has finished"
    with held(model, busy):
        return Stream(sources, model, config).run()


class Stream:
    """One stream: its shards, and what they are to become.

    Attributes:
        shards: by their places.
        layout: of the columns of features, where there are tables.
        wanted: what a sample has to be.
        encoder: of samples; None where they are features.
    """

    def __init__(self, sources: Sequence[str], model: Path, config: StreamConfig) -> None:
        if not model.name:
            raise ConfigError(f"{model} is no name of a model; give that of a folder to be made")
        self.model, self.config = model, config
        self.folder = model.with_name(f"{model.name}.streaming")
        self._require_free()
        shards = shards_of(sources, config.fields)
        place, parts = config.part
        self.shards = dict(enumerate(shards[place - 1 :: parts]))
        if not self.shards:
            raise ConfigError(f"part {place}/{parts}: there are {len(shards)} shards; give fewer")
        self.layout = of_one_layout(shards)
        self.wanted = Wanted(names=config.classes)
        self.encoder = self._encoder(shards)
        self.head = built(config.head, {})

    def _require_free(self) -> None:
        if is_occupied(self.model) and not (self.model / DESCRIPTION).exists():
            raise ConfigError(f"{self.model} holds something else; choose another folder")
        begun = (self.folder / PROGRESS).exists()
        if (self.model / DESCRIPTION).exists() and not begun:
            raise ConfigError(
                f"{self.model} is a model already, and no stream into it is left to be continued; "
                "choose another folder, and merge the two: protocl merge -o BOTH A B"
            )
        if begun and not self.config.resume:
            raise ConfigError(
                f"{self.folder} holds the progress of a stream that was interrupted: continue it "
                "with --resume, or remove the folder"
            )

    def _encoder(self, shards: Sequence[Shard]) -> Encoder | None:
        """The backbone for samples as the first one is, whose shape all others have to have."""
        entry = first_sample(shards, self.wanted)
        x = decoded_sample(entry.sample, entry.name, self.wanted)
        config = self.config.backbone
        if config is None and x.ndim == 3:
            config = BackboneConfig(name="efficientnet_lite0")
        encoder, shape = None, tuple(x.shape)
        if config is not None:
            encoder = Encoder.of(config, x[None])
            size = encoder.backbone.image_size if x.ndim == 3 else None
            shape = shape if size is None else (shape[0], size, size)
            encoder.shape = shape
        self.wanted = Wanted(shape, self.config.classes)
        return encoder

    def batch_size(self, device: torch.device) -> int:
        """Entries a portion that suit samples and device."""
        if self.encoder is None or self.wanted.shape is None or len(self.wanted.shape) == 1:
            return _VECTORS
        x = torch.empty(0, *self.wanted.shape)
        return default_batch_size(self.encoder.backbone, x, device)

    def run(self) -> Progress:
        """Read what is left, and write the model."""
        device = resolve_device(self.config.device)
        size = self.config.batch_size or self.batch_size(device)
        with self._encoding(device, size) as encode:
            width = self._width()
            progress_folder = ProgressFolder(
                self.folder, self._settings(size, width), list(self.shards.values())
            )
            found = progress_folder.load()
            progress, memory = found or (Progress(), self._empty(width))
            names = {place: shard.name for place, shard in self.shards.items()}
            sums = Accumulator(memory.to(device), encode, progress.labels, names)
            self._read(progress, sums, size, progress_folder)
        if not progress.samples:
            raise DataError(f"no sample could be read; first of all: {progress.told[0]}")
        with self._writing():
            self._write(progress, sums.memory.to("cpu"))
        progress_folder.remove()
        return progress

    def _read(
        self, progress: Progress, sums: Accumulator, size: int, folder: ProgressFolder
    ) -> None:
        left = {p: shard for p, shard in self.shards.items() if p not in progress.ended}
        portions = Portions(left, progress.done, size, self.wanted).read(self.config.workers)
        every = self.config.save_every
        folder.wait(every)
        with progress_bar("samples", None) as bar:
            bar.update(progress.samples)
            for portion in portions:
                self._complain(portion.faults, progress)
                sums.add(portion)
                progress.note(portion)
                bar.update(len(portion.names))
                if folder.is_due:
                    self._save(progress, sums, folder)
        self._save(progress, sums, folder)

    def _save(self, progress: Progress, sums: Accumulator, folder: ProgressFolder) -> None:
        sums.flush()
        progress.labels = sums.labels
        with self._writing():
            folder.save(progress, sums.memory, self.config.save_every)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder} and {self.model} cannot be written ({error.strerror or error}); "
                "make room, or right what is wrong there, and go on with --resume"
            ) from error

    def _complain(self, faults: Sequence[Fault], progress: Progress) -> None:
        if faults and self.config.on_error == "stop":
            raise DataError(
                f"{faults[0].message}; --on-error skip leaves such samples out and counts them"
            )
        for number, fault in enumerate(faults, start=progress.skipped.total()):
            if number < _LOGGED:
                logger.warning("skipped: %s", fault.message)

    # -- what it becomes --------------------------------------------------------------------

    @contextmanager
    def _encoding(self, device: torch.device, size: int) -> Iterator[Callable[[Tensor], Tensor]]:
        if self.encoder is None:
            yield lambda x: x
            return
        with frozen(self.encoder.backbone, device):
            yield encoding(self.encoder.backbone, device, size, self.config.compiled)

    def _width(self) -> int:
        if self.encoder is not None:
            return self.encoder.backbone.feature_dim
        assert self.wanted.shape is not None
        return self.wanted.shape[0]

    def _empty(self, width: int) -> PrototypeMemory:
        make = partial(
            self.head.new_memory, width, exact=True, step=self.config.step, calibrated=True,
            fingerprint=self._fingerprint(),
        )  # fmt: skip
        memory: PrototypeMemory = make(level="full") if self.config.forgettable else make()
        return memory

    def _fingerprint(self) -> str | None:
        return None if self.encoder is None else fingerprint(self.encoder.backbone)

    def _settings(self, size: int, width: int) -> Mapping[str, Any]:
        fields, config = self.config.fields, self.config
        return {
            "backbone": self._fingerprint(),
            "samples of shape": self.wanted.shape,
            "features": width,
            "--head": config.head,
            "--forgettable": config.forgettable,
            "--step": config.step,
            "--batch-size": size,
            "--compile": config.compiled,
            "--part": config.part,
            "--classes": config.classes,
            "--sample": fields.sample,
            "--label": fields.label,
            "--features": fields.features,
            "columns of features": None if self.layout is None else self.layout.features,
        }

    def _write(self, progress: Progress, memory: PrototypeMemory) -> None:
        head: Head = self.head
        classifier = PrototypeClassifier(
            head,
            backbone=None if self.encoder is None else self.encoder.backbone,
            forgettable=memory.level != "shared",
            exact=True,
            step=memory.step,
        )
        labels = np.array([progress.labels[number] for number in memory.classes.tolist()])
        _tell_alike(labels.tolist())
        if self.encoder is not None:
            self.encoder.batch_size = 1  # as that of every model in fixed point
        save_model(classifier.hold(memory, labels, self.encoder), self.model)
        content = {
            "samples": progress.samples,
            "classes": len(labels),
            "shards": len(self.shards),
            "part": list(self.config.part),
            "skipped": dict(sorted(progress.skipped.items())),
            "first_skipped": progress.told,
        }
        atomic_write(self.model / REPORT, json.dumps(content, indent=1) + "\n")


def _tell_alike(labels: Sequence[Label]) -> None:
    """Warn of two classes whose names differ in what is easily overlooked."""
    seen: dict[str, str] = {}
    for label in labels:
        if not isinstance(label, str):
            return
        key = unicodedata.normalize("NFKC", label).casefold().strip()
        if key in seen:
            logger.warning(
                "%r and %r are two classes, whose names differ in case, spaces or the way their "
                "letters are written; rename one in the shards if they are one", seen[key], label,
            )  # fmt: skip
        seen.setdefault(key, label)
