"""What a run works with, whatever its kind: folder, device, clock, checkpoints, result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from protocl.backbones import Backbone
from protocl.backbones.features import encode_once
from protocl.backbones.fit import fit_for
from protocl.data import ArrayData, load_data
from protocl.data.config import refuse_unlabelled
from protocl.errors import ConfigError, DataError
from protocl.io import provenance
from protocl.io.atomic import atomic_write
from protocl.io.checkpoint import CheckpointFolder, outdated
from protocl.io.profile import PhaseLog
from protocl.report.result import FORMAT, RESULT_FILE
from protocl.runner.progress import Progress, ProgressCallback
from protocl.trackers import Trackers, open_trackers

CHECKPOINTS = "checkpoint"
Config = TypeVar("Config", bound=Any)


class RunContext(Generic[Config]):
    """One run's surroundings.

    Args:
        kind: of run, a key of :data:`protocl.report.result.KINDS`.
        config: what to run; a dataclass with ``name``, ``seed``, ``device`` and ``benchmark``.
        folder: existing folder of the run.
        on_progress: is told where the run is.
        bars: show a bar on standard error while features are computed.

    Attributes:
        device: where to compute.
        phases: time and memory so far.
        checkpoints: from which the run can be continued.
        data_hash: of the data, once they are loaded.
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
        self.kind = kind
        self.config = copy(config)  # that of the caller stays as it was typed
        self.folder = folder
        self.bars = bars
        self.device = resolve_device(config.device)
        self.phases = PhaseLog()
        self.checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        self.data_hash = ""
        self._on_progress = on_progress

    def tell(self, phase: str, done: int | None = None, **more: Any) -> None:
        """Report where the run is; arguments are those of :class:`Progress`."""
        if self._on_progress is not None:
            self._on_progress(Progress(phase, done, **more))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report and measure a phase of the whole run."""
        self.tell(name)
        with self.phases.phase(name):
            yield

    def load_data(self) -> ArrayData:
        """The data of the benchmark; from then on ``config.backbone`` is one that fits them."""
        if self.kind != "experiment":
            refuse_unlabelled(self.config.benchmark)
        with self.phase("data"):
            data = load_data(self.config.benchmark)
            self.data_hash = data.content_hash
        self.config.backbone = fit_for(self.config.backbone, data.input_shape, data.name)
        return data

    def encode(
        self,
        data: ArrayData,
        backbone: Backbone,
        choose_batch: Callable[[], int | None] = lambda: None,
    ) -> ArrayData:
        """The data with features of a frozen backbone in place of samples, computed once ever.

        Args:
            data: samples.
            backbone: frozen.
            choose_batch: how many go through it at a time; None for the rule's number.
        """
        with self.phase("features"):
            return encode_once(
                data, backbone, self.config.cache, self.device,
                batch_size=choose_batch(), progress=self.bars,
            )  # fmt: skip

    def events(self, done: int = 0) -> Trackers:
        """Where curves go, without what was lost of those after step ``done``."""
        return open_trackers(self.config, self.folder, done + 1 if done else 0)

    # -- checkpoints ------------------------------------------------------------------------

    def save(
        self, done: int, state: Mapping[str, Any], shared: Mapping[str, object] | None = None
    ) -> None:
        """Write the checkpoint from which the run goes on after ``done`` units.

        Args:
            done: units finished, at least 1.
            state: all that decides how it goes on.
            shared: objects that the checkpoint refers to (:func:`protocl.io.checkpoint.save`).
        """
        self.checkpoints.save(done - 1, {**state, "origin": self.origin()}, shared or {})

    def take_up(self, shared: Mapping[str, object] | None = None) -> dict[str, Any] | None:
        """The state to go on from, or None where there is none; damaged ones are passed over.

        Raises:
            ConfigError, DataError: going on from it would not be the same run.
        """
        state: dict[str, Any] | None = self.checkpoints.load_newest(shared or {}, self.device)
        if state is not None:
            self.accept(state["origin"])
        return state

    def origin(self) -> dict[str, Any]:
        """What has to be the same for whoever continues the run, and its phases so far."""
        return {
            "data_hash": self.data_hash,
            "versions": self._versions,
            "threads": torch.get_num_threads(),
            "phases": self.phases.entries,
        }

    def accept(self, origin: Mapping[str, Any] | None) -> None:
        """Go on in the circumstances of :meth:`origin`, or refuse where they are no longer.

        Raises:
            DataError: the data changed.
            ConfigError: a version changed, or an earlier protocl left no origin.
        """
        if origin is None:
            raise outdated(self.folder)
        if origin["data_hash"] != self.data_hash:
            raise DataError(
                f"{self.folder}: the data of benchmark '{self.config.benchmark.name}' changed "
                "since the run began; restore it, or start anew without resume=true"
            )
        present = self._versions
        if origin["versions"] != present:
            changed = sorted(dict(origin["versions"].items() ^ present.items()))
            raise ConfigError(
                f"{self.folder}: {', '.join(changed)} changed version since the run began; "
                "install those named in its result.json, or start anew without resume=true"
            )
        torch.set_num_threads(origin["threads"])  # sums depend on it in the last bit
        self.phases = PhaseLog(origin["phases"] + self.phases.entries)

    # -- the result -------------------------------------------------------------------------

    def write(self, found: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
        """Write ``result.json``; with the plots of a complete one before it.

        Args:
            found: what this kind of run adds to what all have.
            complete: whether nothing of the run remains to be done.

        Returns:
            Its content.
        """
        from protocl.report import plot_run

        result = {
            "format": FORMAT,
            "kind": self.kind,
            "name": self.config.name,
            "seed": self.config.seed,
            "status": "complete" if complete else "running",
            **found,
            "phases": self.phases.entries,
            "versions": self._versions,
            "git": self._git,
            "machine": self._machine,
        }
        if complete and "metrics" in result:
            plot_run(result, self.folder / "plots")
        atomic_write(self.folder / RESULT_FILE, json.dumps(result, indent=1, allow_nan=False))
        return result

    @property
    def _machine(self) -> dict[str, Any]:
        return provenance.machine(str(self.device), torch.get_num_threads())

    @cached_property
    def _versions(self) -> dict[str, str]:
        return provenance.versions()

    @cached_property
    def _git(self) -> dict[str, Any] | None:
        return provenance.git_state()


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
