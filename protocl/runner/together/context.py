"""The surroundings of a run that several processes carry out: the first alone writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from protocl.backbones import Backbone, fingerprint
from protocl.backbones.features import encode_once
from protocl.data import ArrayData
from protocl.distributed.collectives import dealt, of_first, require_same, together
from protocl.io import provenance
from protocl.runner.context import RunContext
from protocl.runner.progress import ProgressCallback

Config = TypeVar("Config", bound=Any)


class SharedContext(RunContext[Config]):
    """A :class:`.RunContext` on each of several processes.

    All have the data and compute the same way; features of a frozen backbone are computed in
    shares. Only the first process writes: the others are given its folder and leave it alone.

    Args:
        kind, config, folder, on_progress, bars: see :class:`.RunContext`.
    """

    def __init__(
        self,
        kind: str,
        config: Config,
        folder: Path,
        on_progress: ProgressCallback | None = None,
        *,
        bars: bool = False,
    ) -> None:
        self.leads = dist.get_rank() == 0
        self.size = dist.get_world_size()
        own = config if self.leads else replace(config, tracker=[])
        super().__init__(kind, own, folder, on_progress, bars=bars and self.leads)
        torch.set_num_threads(of_first(torch.get_num_threads))  # sums depend on it
        require_same({"versions": provenance.versions(), "device": self.device.type})

    def load_data(self) -> ArrayData:
        """See :meth:`.RunContext.load_data`; all processes need the same data."""
        data: ArrayData | None = None
        with together():
            data = super().load_data()
        require_same({"the data of the benchmark": self.data_hash})
        assert data is not None
        return data

    def encode(
        self,
        data: ArrayData,
        backbone: Backbone,
        choose_batch: Callable[[], int | None] = lambda: None,
    ) -> ArrayData:
        """See :meth:`.RunContext.encode`; each process computes its part of the cache."""
        with self.phase("features"):
            require_same({"the backbone's weights": fingerprint(backbone)})
            batch = of_first(choose_batch)
            if hasattr(self.config, "encoding_batch"):
                self.config.encoding_batch = of_first(lambda: self.config.encoding_batch)
            return encode_once(
                data, backbone, self.config.cache, self.device,
                batch_size=batch, progress=self.bars, carry_out=dealt,
            )  # fmt: skip

    def save(
        self, done: int, state: Mapping[str, Any], shared: Mapping[str, object] | None = None
    ) -> None:
        """See :meth:`.RunContext.save`."""
        if self.leads:
            super().save(done, state, shared)

    def take_up(self, shared: Mapping[str, object] | None = None) -> dict[str, Any] | None:
        """See :meth:`.RunContext.take_up`; the first process reads, and all go on from there."""
        state = of_first(lambda: super(SharedContext, self).take_up(shared))
        torch.set_num_threads(of_first(torch.get_num_threads))
        return state

    def write(self, found: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
        """See :meth:`.RunContext.write`; nothing on other processes than the first."""
        return super().write(found, complete=complete) if self.leads else {}

    @property
    def _machine(self) -> dict[str, Any]:
        return super()._machine | {"processes": self.size}
