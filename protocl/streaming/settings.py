"""The settings of ``protocl stream``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from protocl.backbones import BackboneConfig
from protocl.data.shards.sources import Fields
from protocl.errors import ConfigError

OnError = Literal["stop", "skip"]
Compiled = Literal["no", "yes", "graphs"]


@dataclass(frozen=True)
class StreamConfig:
    """How a model is made of shards.

    Attributes:
        backbone: makes features of samples; None for ``efficientnet_lite0`` of pictures, and for
            vectors as they are.
        head: name of a registered head.
        forgettable: keep second moments of each class, so that every class can be forgotten by
            name; else what the head needs.
        step: quantisation step of fixed point; a feature moves by at most half of it.
        fields: which part of an entry is what, where names do not say.
        classes: names that labels 0, 1, ... stand for; texts have to be among them.
        batch_size: entries that go through the backbone together, always those of one shard; None
            for a size that suits samples and device. Features depend on it in their last bits.
        workers: processes that read and decode; 0 for this one.
        device: where the backbone computes and sums are kept.
        compiled: ``"yes"`` for ``torch.compile`` of the backbone, ``"graphs"`` for CUDA graphs as
            well, which pay where a forward pass is many small kernels; features change in their
            last bits, and the first portion takes a minute or more.
        on_error: ``"stop"`` at the first entry that cannot be read, or ``"skip"`` and count it.
        part: ``(i, n)`` for the i-th of n parts of the shards, from 1 on, which merge afterwards.
        resume: continue what was interrupted.
        save_every: seconds after which progress is written; later where that would take more than
            a twentieth of the time.
    """

    backbone: BackboneConfig | None = None
    head: str = "ridge"
    forgettable: bool = False
    step: float = 2.0**-16
    fields: Fields = field(default_factory=Fields)
    classes: tuple[str, ...] | None = None
    batch_size: int | None = None
    workers: int = 0
    device: str = "auto"
    compiled: Compiled = "no"
    on_error: OnError = "stop"
    part: tuple[int, int] = (1, 1)
    resume: bool = False
    save_every: float = 60.0

    def __post_init__(self) -> None:
        place, parts = self.part
        if not 1 <= place <= parts:
            raise ConfigError(f"part {place}/{parts}: expected one of 1/{parts} .. {parts}/{parts}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: expected a number of at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers}: expected a number of at least 0")
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error={self.on_error}: expected stop or skip")
        if self.compiled not in get_args(Compiled):
            raise ConfigError(f"compiled={self.compiled}: expected no, yes or graphs")
        if not self.save_every >= 0:
            raise ConfigError(f"save_every={self.save_every}: expected seconds, 0 or more")
        if not self.step > 0:
            raise ConfigError(f"step={self.step}: expected a number above 0")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ConfigError(f"classes: '{twice}' is named twice; expected each name once")
        _refuse_other_numbers(self.classes or ())
        if self.backbone is not None and self.backbone.layer_scale == "std":
            raise ConfigError(
                "backbone.layer_scale=std: deviations would be those of the first sample; take "
                "unit or none"
            )


def _refuse_other_numbers(names: Sequence[str]) -> None:
    """Refuse a name that is the number of another class: a label ``2`` could mean either."""
    for place, name in enumerate(names):
        if name != str(place) and _is_number(name):
            raise ConfigError(
                f"classes: '{name}' names the class {place}, and a label {name} could mean either; "
                "leave classes out where labels are their names, or add a word to each name"
            )


def _is_number(name: str) -> bool:
    """Whether a label of this text is the number, as :func:`.label_of` has it."""
    return name.isdecimal() and str(int(name)) == name
