"""One federated run, from its configuration to its result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from protocl.backbones import build_backbone, fingerprint
from protocl.config.arguments import Argument, Settings
from protocl.data.streams import hold_out
from protocl.errors import as_config_error
from protocl.federation.client.benchmark_clients import (
    BenchmarkClients,
    number_of_clients,
    stages_of,
)
from protocl.federation.client.partition import stage_starts
from protocl.federation.client.state import NoStates, StatesInProcess, StatesOnDisk, StateStore
from protocl.federation.config import FederateConfig, FederationSetup, Method
from protocl.federation.config.compose import compose, settle_short
from protocl.federation.runner.centralized import (
    compare_with_one_place,
    require_comparable,
)
from protocl.federation.runner.evaluation import Evaluator, RoundReport, require_scores
from protocl.federation.runner.result import build_result
from protocl.federation.wire.compat import quiet, without_round_reports
from protocl.federation.wire.traffic import Traffic
from protocl.io.atomic import atomic_write
from protocl.metrics.history import Evaluation, History
from protocl.report.result import OnePlace
from protocl.runner.context import RunContext
from protocl.runner.kind import Kind
from protocl.runner.model import write_model

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp import Grid

PROGRESS_FILE = "progress.json"


class FederationKind(Kind[FederateConfig]):
    """A federation of simulated clients; methods that can be continued keep a checkpoint a round.

    The last ones stay after the run: a client can still be forgotten.
    """

    name = "federation"
    keeps_checkpoints = True

    def settle(self, arguments: Sequence[Argument]) -> list[Settings]:
        """See :class:`protocl.runner.kind.Kind`; keys of rounds may be typed short."""
        return settle_short(arguments)

    def compose(self, settings: Settings) -> FederateConfig:
        """See :class:`protocl.runner.kind.Kind`."""
        return compose(settings)

    def execute(self, run: RunContext[FederateConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        quiet()
        with without_round_reports():
            return FederatedRun(run).finish()


FEDERATION = FederationKind()
run_federation = FEDERATION.carry_out


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

    def __init__(self, run: RunContext[FederateConfig]) -> None:
        self.run, self.config = run, run.config
        self.reports: list[RoundReport] = []
        self.one_place: OnePlace | None = None
        self.history = History()
        if self.config.verify:
            require_comparable(self.config.method)
        self._load()
        rounds = self.config.federation.rounds
        starts = stage_starts(len(self.stages), rounds)
        self._stage_ends = [*(start - 1 for start in starts[1:]), rounds]
        self._prepare_method()
        if self.config.unknown:
            require_scores(self.method, self.config.method)
        self._evaluator = Evaluator(
            self.method, self.config.method.personal, self.data, self.n_classes, self.stages
        )
        self._began = time.perf_counter()

    def finish(self) -> dict[str, Any]:
        """Run the rounds that remain and write memory and books."""
        rounds = self.config.federation.rounds
        begun = self.run.checkpoints.path.exists()
        done = self.method.resume() if self.config.resume and begun else 0
        if done:
            self._recall(done)
        with self.run.events(done) as self.events:
            if done < rounds:
                self._simulate(rounds - done, done)
        self._conclude()
        return build_result(self)

    # -- before -----------------------------------------------------------------------------

    def _load(self) -> None:
        """Data, features, and the classes of each stage."""
        config = self.config
        data = self.run.load_data()
        clients = number_of_clients(data, config.federation.clients, config.partition)
        config.federation = replace(config.federation, clients=clients)
        self.n_classes, self.class_names = data.n_classes, data.class_names
        self.sample_shape = data.input_shape
        if config.benchmark.validation:
            data = hold_out(
                data, config.benchmark.validation, config.seed, config.benchmark.class_order
            )
        self.backbone = build_backbone(config.backbone, data.input_shape, config.seed)
        self.fingerprint = fingerprint(self.backbone)
        self.data = data if config.method.needs_samples else self.run.encode(data, self.backbone)
        self.stages = stages_of(config.benchmark, config.partition, data, config.seed)

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
            clients.spill(self.run.folder / "features.pt")
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
            checkpoints=self.run.checkpoints.path,
            limits=config.limits,
        )
        with as_config_error(f"method={config.method.name}: "):
            self.method = self._build_method(setup)
        self._measures_itself = hasattr(self.method.strategy, "traffic")
        self.traffic: Traffic = getattr(self.method.strategy, "traffic", Traffic())

    def _build_method(self, setup: FederationSetup) -> Method:
        if not setup.federation.edges:
            return self.config.method.build(setup)
        from protocl.federation.edges.simulated import build_tree

        return build_tree(self.config.method, setup)

    def _states(self) -> StateStore:
        if not self.config.federation.remember:
            return NoStates()
        # Ray's workers share no memory, so the states of their clients are files.
        on_ray = self.config.federation.engine == "ray"
        return StatesOnDisk(self.run.folder / "clients") if on_ray else StatesInProcess()

    def _recall(self, done: int) -> None:
        """Take up the evaluations of the rounds done."""
        kept = json.loads((self.run.folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.run.accept(kept.get("origin"))
        self.reports = [RoundReport(**r) for r in kept["rounds"] if r["round"] <= done]
        ended = sum(end <= done for end in self._stage_ends)
        self.history = History(History.from_dict(kept["history"]).evaluations[:ended])

    # -- during -----------------------------------------------------------------------------

    def _simulate(self, rounds: int, done: int) -> None:
        from protocl.federation.runner.simulation import simulate

        federation = self.config.federation
        grid = None if federation.engine == "ray" else self._grid()
        with self.run.phases.phase("train"):
            self._tell(done)
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
        if federation.edges:  # at which replies are lost and late
            return InProcessGrid(self.method.client_app, federation.edges, seed=self.config.seed)
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
        confusions = self._evaluator.answers(arrays, stage)
        right = sum(confusion.correct for confusion in confusions.values())
        total = sum(confusion.total for confusion in confusions.values())
        accuracy = right / total if total else None
        report = RoundReport(
            number, accuracy, sum(len(s) for s in self.stages[: stage + 1]), seconds,
            self.traffic.total("up", number), self.traffic.total("down", number), total,
            self._evaluator.detection(stage) if self.config.unknown else {},
        )  # fmt: skip
        self.reports.append(report)
        self._log(report)
        if number == self._stage_ends[stage]:
            self.history.append(Evaluation(self._evaluator.completed(confusions)))
        self._write_progress()
        self._tell(number, report)
        self._began = time.perf_counter()
        return None

    def _log(self, report: RoundReport) -> None:
        for name in ("accuracy", "evaluated", "bytes_up", "bytes_down", "seconds"):
            if (value := getattr(report, name)) is not None:
                self.events.add_scalar(f"round/{name}", value, report.round)
        for kind, sizes in self.traffic.by_type(report.round).items():
            for way, size in sizes.items():
                self.events.add_scalar(f"bytes/{kind}/{way}", size, report.round)

    # -- after ------------------------------------------------------------------------------

    def _conclude(self) -> None:
        merged = getattr(self.method.strategy, "merged", None)
        if merged is not None:
            merged.ledger.save(self.run.folder / "ledger.jsonl")
        self.traffic.save(self.run.folder / "traffic.csv")
        self._write_model()  # which stays, should the comparison fail
        if self.config.verify:
            self.one_place = compare_with_one_place(self)
        self.run.tell("report", report=self.one_place)

    def _write_model(self) -> None:
        """Keep what was learned; as a memory alone where its features are no backbone's."""
        if hasattr(self.method, "final_answer"):
            write_model(
                self.run.folder, self.method.final_answer(), self.backbone, self.sample_shape,
                self.class_names,
            )  # fmt: skip
        elif self.method.memory is not None:
            self.method.memory.save(self.run.folder / "memory.safetensors")

    def _write_progress(self) -> None:
        progress = {
            "origin": self.run.origin(),
            "rounds": [asdict(report) for report in self.reports],
            "history": self.history.to_dict(),
        }
        atomic_write(self.run.folder / PROGRESS_FILE, json.dumps(progress))
        if self.history.evaluations:
            self.run.write(build_result(self), complete=False)

    def _tell(self, done: int, report: RoundReport | None = None) -> None:
        rounds = self.config.federation.rounds
        self.run.tell("train", done, total=rounds, unit="round", report=report)
