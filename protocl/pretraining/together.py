"""A training of an embedding that several processes carry out together."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from protocl.distributed.training import all_features, data_parallel, same_everywhere, share_of
from protocl.pretraining.config import PretrainConfig
from protocl.pretraining.run import EpochReport, Pretraining
from protocl.runner.together.context import SharedContext


class SharedPretraining(Pretraining):
    """A :class:`.Pretraining` on each of several processes.

    Mini-batches and their distortion are those of a single process; each has its share go through
    the backbone, and the loss is that of the features of all. Weights are those of one process up
    to rounding, but for BatchNorm, which normalises each share by itself.

    Args:
        run: its surroundings.
    """

    def __init__(self, run: SharedContext[PretrainConfig]) -> None:
        super().__init__(run)
        self.leads = run.leads
        same_everywhere(self.backbone, self.module)
        self._shared = data_parallel(self.backbone)

    def _features(self, images: Tensor) -> Tensor:
        mine = share_of(len(images))
        if mine is None:
            whole: Tensor = self._shared(images)
            return whole
        return all_features(self._shared(images[mine]), len(images))

    def _epoch(self, number: int) -> EpochReport:
        self._shared.train()
        return super()._epoch(number)

    def _settle(self) -> None:
        same_everywhere(self.backbone, self.module)

    def _write_weights(self, file: Path) -> None:
        if self.leads:
            super()._write_weights(file)
