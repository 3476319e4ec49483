"""One federated run, from its configuration to its result."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from protocl.backbones import build_backbone, fingerprint
from protocl.backbones.features import encode_once
from protocl.data import load_data
from protocl.data.streams import class_order, experience_sizes, hold_out
from protocl.errors import AllFailedError, as_config_error
from protocl.federation.client.benchmark_clients import BenchmarkClients
from protocl.federation.client.partition import stage_starts
from protocl.federation.client.state import NoStates, StatesInProcess, StatesOnDisk, StateStore
from protocl.federation.config import FederateConfig, FederationSetup
from protocl.federation.runner.centralized import (
    OnePlace,
    compare_with_one_place,
    require_comparable,
)
from protocl.federation.runner.result import build_result
from protocl.federation.wire.traffic import Traffic
from protocl.io.atomic import atomic_write
from protocl.io.profile import PhaseLog
from protocl.metrics.confusion import Confusion
from protocl.metrics.history import Evaluation, History
from protocl.runner.experiment import resolve_device
from protocl.runner.folders import RESULT_FILE, exclusive, is_complete, read_result

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp import Grid

    from protocl.data.arrays import ArrayData

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class RoundReport:
    """What one round brought.

    Attributes:
        round: its number, from 1.
        accuracy: on the test data of all classes that have arrived; None where clients measure it
            and none of them answered.
        classes: number of these classes.
        seconds: wall time of the round without the evaluation.
        bytes_up, bytes_down: measured on the serialised messages.
        evaluated: samples that the accuracy is of.
    """

    round: int
    accuracy: float | None
    classes: int
    seconds: float
    bytes_up: int
    bytes_down: int
    evaluated: int = 0


OnRound = Callable[[RoundReport], None]


def run_federation(
    config: FederateConfig, run_dir: Path, *, on_round: OnRound | None = None
) -> dict[str, Any]:
    """Run one federation in simulation, or the rest of one that was interrupted.

    Args:
        config: what to run.
        run_dir: existing folder of the run (:func:`protocl.runner.folders.open_run`).
        on_round: told of every round.

    Returns:
        The content of ``result.json``.

    Raises:
        ProtoclError: the configuration, the data or a checkpoint does not allow the run.
    """
    with exclusive(run_dir):
        finished = read_result(run_dir)
        if finished is not None and is_complete(finished):
            return finished
        return FederatedRun(config, run_dir, on_round or (lambda report: None)).finish()


class FederatedRun:
    """The state of one run.

    Attributes:
        data: features of the benchmark, or its samples where the method asks for them.
        backbone: makes the features.
        stages: classes of each experience; one for all where classes do not arrive in a stream.
        reports: what each round brought.
        history: evaluations after the last round of each stage.
        one_place: the comparison that ``verify=true`` asks for.
    """

    def __init__(self, config: FederateConfig, run_dir: Path, on_round: OnRound) -> None:
        self.config = config
        self.run_dir = run_dir
        self.on_round = on_round
        self.phases = PhaseLog()
        self.reports: list[RoundReport] = []
        self.one_place: OnePlace | None = None
        self.history = History()
        if config.verify:
            require_comparable(config.method)
        self._load()
        rounds = config.federation.rounds
        starts = stage_starts(len(self.stages), rounds)
        self._stage_ends = [*(start - 1 for start in starts[1:]), rounds]
        self._prepare_method()
        self._began = time.perf_counter()

    def finish(self) -> dict[str, Any]:
        """Run the rounds that remain and write the results."""
        from torch.utils.tensorboard import SummaryWriter

        rounds = self.config.federation.rounds
        done = self.method.resume() if self.config.resume and self._has_checkpoint() else 0
        if done:
            self._recall(done)
        with SummaryWriter(str(self.run_dir)) as self.events:
            if done < rounds:
                self._simulate(rounds - done, done)
            return self._conclude()

    # -- before -----------------------------------------------------------------------------

    def _load(self) -> None:
        """Data, features, and the classes of each stage."""
        config = self.config
        with self.phases.phase("data"):
            data = load_data(config.benchmark)
            self.data_hash, self.n_classes = data.content_hash, data.n_classes
            if config.benchmark.validation:
                data = hold_out(
                    data, config.benchmark.validation, config.seed, config.benchmark.class_order
                )
        self.backbone = build_backbone(config.backbone, data.input_shape, config.seed)
        self.fingerprint = fingerprint(self.backbone)
        with self.phases.phase("features"):
            self.data = self._encode(data)
        order = class_order(config.benchmark, data.y_train, config.seed)
        sizes = [len(order)]
        if config.partition.growth == "stream":
            sizes = experience_sizes(config.benchmark, len(order))
        self.stages = [list(part) for part in _cut(order, sizes)]

    def _encode(self, data: ArrayData) -> ArrayData:
        config = self.config
        if config.method.needs_samples:
            return data
        device = resolve_device(config.device)
        return encode_once(data, self.backbone, config.cache, device)

    def _prepare_method(self) -> None:
        config, federation = self.config, self.config.federation
        clients = BenchmarkClients.from_config(
            self.data,
            config.partition,
            clients=federation.clients,
            rounds=federation.rounds,
            seed=config.seed,
            stages=self.stages,
            tests=federation.evaluate > 0 or config.method.personal,
        )
        if federation.engine == "ray":
            clients.spill(self.run_dir / "features.pt")
        self.clients = clients
        setup = FederationSetup(
            load=clients,
            backbone=self.backbone,
            feature_dim=self.backbone.feature_dim,
            n_classes=self.n_classes,
            fingerprint=self.fingerprint,
            seed=config.seed,
            federation=federation,
            states=self._states(),
            checkpoints=self.run_dir / "checkpoint",
        )
        with as_config_error(f"method={config.method.name}: "):
            self.method = config.method.build(setup)
        self._measures_itself = hasattr(self.method.strategy, "traffic")
        self.traffic: Traffic = getattr(self.method.strategy, "traffic", Traffic())

    def _states(self) -> StateStore:
        if not self.config.federation.remember:
            return NoStates()
        # Ray's workers share no memory, so the states of their clients are files.
        on_ray = self.config.federation.engine == "ray"
        return StatesOnDisk(self.run_dir / "clients") if on_ray else StatesInProcess()

    def _has_checkpoint(self) -> bool:
        return (self.run_dir / "checkpoint").is_dir()

    def _recall(self, done: int) -> None:
        """Take up the evaluations of the rounds done."""
        kept = json.loads((self.run_dir / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.reports = [RoundReport(**r) for r in kept["rounds"] if r["round"] <= done]
        ended = sum(end <= done for end in self._stage_ends)
        self.history = History(History.from_dict(kept["history"]).evaluations[:ended])

    # -- during -----------------------------------------------------------------------------

    def _simulate(self, rounds: int, done: int) -> None:
        from protocl.federation.runner.simulation import simulate

        federation = self.config.federation
        grid = None if federation.engine == "ray" else self._grid()
        with self.phases.phase("train"):
            self._began = time.perf_counter()
            simulate(
                self.method.strategy,
                self.method.client_app,
                clients=federation.clients,
                rounds=rounds,
                engine=federation.engine,
                initial=self.method.initial,
                after_round=lambda number, arrays: self._after_round(number + done, arrays, number),
                timeout=federation.deadline,
                grid=grid,
                traffic=None if self._measures_itself else self.traffic,
            )

    def _grid(self) -> Grid:
        from protocl.federation.wire.grid import InProcessGrid

        federation = self.config.federation
        return InProcessGrid(
            self.method.client_app, federation.clients,
            lost=federation.lost, late=federation.late, seed=self.config.seed,
        )  # fmt: skip

    def _after_round(self, number: int, arrays: ArrayRecord, since: int) -> MetricRecord | None:
        """Evaluate on the server's test data, and write everything that is known."""
        seconds = time.perf_counter() - self._began
        if since == 0:  # called once before the first round
            self._began = time.perf_counter()
            return None
        stage = next(t for t, end in enumerate(self._stage_ends) if number <= end)
        confusions = self._evaluate(arrays, stage)
        right = sum(confusion.correct for confusion in confusions.values())
        total = sum(confusion.total for confusion in confusions.values())
        accuracy = right / total if total else None
        report = RoundReport(
            number, accuracy, sum(len(s) for s in self.stages[: stage + 1]), seconds,
            self.traffic.total("up", number), self.traffic.total("down", number), total,
        )  # fmt: skip
        self.reports.append(report)
        self._log(report)
        if number == self._stage_ends[stage]:
            self.history.append(Evaluation(self._answered(confusions)))
        self._write_progress()
        self.on_round(report)
        self._began = time.perf_counter()
        return None

    def _evaluate(self, arrays: ArrayRecord, stage: int) -> dict[int, Confusion]:
        """Confusion on the test data of each stage up to ``stage``."""
        stages = enumerate(self.stages[: stage + 1])
        return {t: self._confusion(arrays, classes) for t, classes in stages}

    def _confusion(self, arrays: ArrayRecord, classes: list[int]) -> Confusion:
        """On the test data of ``classes``; no answer is a wrong one."""
        rows = torch.isin(self.data.y_test, torch.tensor(classes))
        x, y = self.data.x_test[rows], self.data.y_test[rows]
        memory = self.method.memory
        if self.config.method.personal:
            newest: Confusion = self._personal[-1]
            return newest.among(classes)
        if memory is None or len(memory):
            return Confusion.from_predictions(y, self.method.classify(arrays, x))
        return Confusion.from_predictions(y, (y + 1) % self.n_classes)

    @property
    def _personal(self) -> list[Confusion]:
        """What clients measured in each round, the newest last."""
        evaluations: dict[int, Confusion] = self.method.personal_evaluations  # type: ignore[attr-defined]
        return list(evaluations.values())

    def _answered(self, confusions: dict[int, Confusion]) -> dict[int, Confusion]:
        """With the newest answers there are, where all who hold some classes were lost just now.

        Raises:
            AllFailedError: nobody ever answered for some classes.
        """
        answered = dict(confusions)
        for stage, confusion in confusions.items():
            if not confusion.total:
                answered[stage] = self._newest_of(self.stages[stage])
        return answered

    def _newest_of(self, classes: list[int]) -> Confusion:
        for confusion in reversed(self._personal):
            if (own := confusion.among(classes)).total:
                logger.warning("classes %s: nobody answered just now; older answers count", classes)
                return own
        raise AllFailedError(
            f"no client that holds classes {classes} ever answered an evaluation, so their "
            "accuracy is not known; lower lost, or raise rounds"
        )

    def _log(self, report: RoundReport) -> None:
        for name in ("accuracy", "evaluated", "bytes_up", "bytes_down", "seconds"):
            if (value := getattr(report, name)) is not None:
                self.events.add_scalar(f"round/{name}", value, report.round)
        for kind, sizes in self.traffic.by_type(report.round).items():
            for way, size in sizes.items():
                self.events.add_scalar(f"bytes/{kind}/{way}", size, report.round)

    # -- after ------------------------------------------------------------------------------

    def _conclude(self) -> dict[str, Any]:
        """Write memory, books and plots, last of all the complete result."""
        from protocl.report import plot_run

        if self.method.memory is not None:
            self.method.memory.save(self.run_dir / "memory.safetensors")
        merged = getattr(self.method.strategy, "merged", None)
        if merged is not None:
            merged.ledger.save(self.run_dir / "ledger.jsonl")
        self.traffic.save(self.run_dir / "traffic.csv")
        if self.config.verify:
            self.one_place = compare_with_one_place(self)
        result = build_result(self, complete=True)
        plot_run(result, self.run_dir / "plots")
        return self._write(complete=True)

    def _write_progress(self) -> None:
        progress = {
            "rounds": [asdict(report) for report in self.reports],
            "history": self.history.to_dict(),
        }
        atomic_write(self.run_dir / PROGRESS_FILE, json.dumps(progress))
        if self.history.evaluations:
            self._write(complete=False)

    def _write(self, *, complete: bool) -> dict[str, Any]:
        result = build_result(self, complete=complete)
        atomic_write(self.run_dir / RESULT_FILE, json.dumps(result, indent=1, allow_nan=False))
        return result


def _cut(order: list[int], sizes: list[int]) -> list[list[int]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    return parts
