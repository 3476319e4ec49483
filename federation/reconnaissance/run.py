"""One run of a method in a scenario, from its configuration to its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protocl.backbones import build_backbone, fingerprint
from protocl.backbones.fit import AUTO
from protocl.config.arguments import Settings
from protocl.config.compose import build
from protocl.data.streams import class_order
from protocl.errors import ConfigError, DataError, as_config_error
from protocl.federation.reconnaissance.config import (
    METHODS,
    Learner,
    LearnerSetup,
    ReconnaissanceConfig,
)
from protocl.federation.reconnaissance.discovered import Discoveries, Finding
from protocl.federation.reconnaissance.drawing import draw_scenario
from protocl.federation.reconnaissance.measures import (
    BeforeMerge,
    StepReport,
    accuracy_on,
    confusions,
    mean,
)
from protocl.federation.reconnaissance.methods.prototypes import PrototypeLearner
from protocl.federation.reconnaissance.result import build_result
from protocl.federation.reconnaissance.scenario import SERVER, Mission, Scenario, Step
from protocl.metrics.detection import Detection
from protocl.metrics.history import Evaluation, History
from protocl.open_world.scores import reported_scores
from protocl.registry import BACKBONES, BENCHMARKS
from protocl.runner.context import RunContext
from protocl.runner.kind import Kind
from protocl.runner.model import write_model

if TYPE_CHECKING:
    from rich.console import Console

    from protocl.trackers import Trackers

SCENARIO_FILE = "scenario.json"
KEPT = (
    "learner", "hermits", "known", "stages", "reports", "history", "own", "setup_bytes",
    "discoveries",
)  # fmt: skip
"""What steps change of a run, and checkpoints hold."""


class ReconnaissanceKind(Kind[ReconnaissanceConfig]):
    """A method in a scenario; a checkpoint is written after every step."""

    name = "reconnaissance"

    def compose(self, settings: Settings) -> ReconnaissanceConfig:
        """See :class:`protocl.runner.kind.Kind`."""
        groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES, "method": METHODS}
        defaults = {"benchmark": "digits", "backbone": AUTO, "method": "prototypes"}
        return build(ReconnaissanceConfig, settings, groups, defaults)

    def execute(self, run: RunContext[ReconnaissanceConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        from protocl.federation.wire.compat import quiet

        quiet()
        return Reconnaissance(run).finish()

    def show(self, folders: Sequence[Path], output: Path | None, console: Console) -> None:
        """Print the table of finished runs, and draw curves over their steps."""
        from protocl.federation.reconnaissance.curves import write_curves

        super().show(folders, output, console)
        for file in write_curves(folders, output or folders[0]):
            console.print(f"wrote {file}", soft_wrap=True)


RECONNAISSANCE = ReconnaissanceKind()
run_reconnaissance = RECONNAISSANCE.carry_out


class Reconnaissance:
    """The state of one run.

    Attributes:
        scenario: who sees what when.
        reports: what each step brought.
        known: all classes that anybody has been taught.
        stages: the base classes, then what was new to everybody between one merge and the next.
        history: evaluations after each stage, the last before the next stage begins.
    """

    def __init__(self, run: RunContext[ReconnaissanceConfig]) -> None:
        self.run, self.config = run, run.config
        self._load()
        self.clients = range(self.scenario.clients)
        self.learner = self._build()
        with_hermits = self.config.alone and self.config.method.learns_alone
        self.hermits = self._build() if with_hermits else None
        self.known: set[int] = set()
        self.stages: list[set[int]] = []
        self.reports: list[StepReport] = []
        self.history = History()
        self.own: dict[int, set[int]] = {client: set() for client in self.clients}
        self.setup_bytes = 0
        named = self.config.scenario.named_after is not None
        self.discoveries = Discoveries(self._build() if named else None)

    def finish(self) -> dict[str, Any]:
        """Run the steps that remain and write what was learned."""
        self.scenario.save(self.run.folder / SCENARIO_FILE)
        if (state := self.run.take_up()) is not None:
            vars(self).update({name: state[name] for name in KEPT})
        else:
            self._teach_base()
        with self.run.events(len(self.reports)) as events:
            for step in self.scenario.steps[len(self.reports) :]:
                self._take(step, events)
        if isinstance(self.learner, PrototypeLearner):
            memory = self.learner.memory(self._judges()[0])
            write_model(
                self.run.folder, (self.learner.head, memory), self.backbone, self.sample_shape,
                self.class_names,
            )  # fmt: skip
        return build_result(self)

    def _take(self, step: Step, events: Trackers) -> None:
        """One step, and all that is written of it."""
        done = len(self.reports)
        self._tell(done)
        with self.run.phases.phase("train", done):
            report = self._step(step)
        self.reports.append(report)
        for name in ("accuracy", "own", "bytes_up", "bytes_down"):
            if (value := getattr(report, name)) is not None:
                events.add_scalar(f"step/{name}", value, report.step)
        if self.history.evaluations:
            self.run.write(build_result(self), complete=False)
        self.run.save(done + 1, {name: getattr(self, name) for name in KEPT})
        self._tell(done + 1, report)

    def _tell(self, done: int, report: StepReport | None = None) -> None:
        self.run.tell("train", done, total=len(self.scenario.steps), unit="step", report=report)

    # -- before -----------------------------------------------------------------------------

    def _load(self) -> None:
        config = self.config
        data = self.run.load_data()
        self.backbone = build_backbone(config.backbone, data.input_shape, config.seed)
        self.sample_shape = data.input_shape
        self.fingerprint = fingerprint(self.backbone)
        encoded = self.run.encode(data, self.backbone)
        self.x = torch.cat([encoded.x_train, encoded.x_test]).float()
        self.y = torch.cat([data.y_train, data.y_test])
        self.class_names = data.class_names
        order = class_order(config.benchmark, data.y_train, config.seed, data.arrival)
        n_base = config.benchmark.base_classes or 0
        self.base = set(order[:n_base])
        if config.scenario.file is None:
            self.scenario = draw_scenario(
                config.scenario, data, order[:n_base], order[n_base:], config.seed
            )
        else:
            self.scenario = Scenario.load(Path(config.scenario.file).expanduser())
            if self.scenario.data_hash != data.content_hash:
                raise DataError(
                    f"scenario.file={config.scenario.file}: it was drawn from other data; "
                    "give the same benchmark settings"
                )
        rows = torch.tensor(self.scenario.test_rows, dtype=torch.int64)
        self.x_test, self.y_test = self.x[rows], self.y[rows]

    def _build(self) -> Learner:
        method = self.config.method
        setup = LearnerSetup(
            clients=self.scenario.clients,
            feature_dim=self.x.shape[1],
            n_classes=len(self.class_names),
            seed=self.config.seed,
            fingerprint=self.fingerprint,
            discovers=any(mission.unlabelled for mission in self.scenario.missions),
        )
        with as_config_error(f"method={method.name}: "):
            return method.build(setup)

    def _teach_base(self) -> None:
        rows = torch.tensor(self.scenario.base_rows, dtype=torch.int64)
        if not len(rows):
            return
        self.known = set(self.y[rows].tolist())
        for learner in self._learners():
            learner.learn(SERVER, self.x[rows], self.y[rows])
            self.setup_bytes = learner.publish(self.scenario.clients)
        asked = self._asked(self.known)
        self._note(self.learner.predict(SERVER, self.x_test[asked]), self.y_test[asked])

    # -- a step -----------------------------------------------------------------------------

    def _step(self, step: Step) -> StepReport:
        taught = {m.client: set(self._labels(m).tolist()) for m in step.missions}
        new = self._told().union(*taught.values()) - self.known
        earlier = self.known - self.base
        learn_seconds = self._learn(step)
        self.known |= new
        for client, classes in taught.items():
            self.own[client] |= classes
        before = [
            self._before(client, classes, earlier - classes) for client, classes in taught.items()
        ]
        began = time.perf_counter()
        up, down = self.learner.merge(step.meetings)
        merge_seconds = time.perf_counter() - began
        self.discoveries.merge(step.meetings)
        merged = bool(step.meetings)
        return self._evaluate(new, before, merged, (up, down), (learn_seconds, merge_seconds))

    def _learn(self, step: Step) -> float:
        began = time.perf_counter()
        for mission in step.missions:
            if mission.rows:
                self.learner.learn(mission.client, *self._at(mission.rows))
            self._discover(mission)
        seconds = time.perf_counter() - began
        for other in self._learners()[1:]:
            for mission in step.missions:
                if mission.rows:
                    other.learn(mission.client, *self._at(mission.rows))
        return seconds

    def _discover(self, mission: Mission) -> None:
        if mission.unlabelled:
            x, labels = self._at(mission.unlabelled)
            rows = self.learner.discover(mission.client, x)
            step = len(self.reports) + 1
            self.discoveries.note(Finding(step, mission.client, rows, labels), x)

    def _told(self) -> set[int]:
        """Classes of which clients are told the names in this step."""
        after = self.config.scenario.named_after
        if after is None:
            return set()
        return self.discoveries.tell(self.learner, len(self.reports) + 1 - after)

    def _before(self, client: int, mission: set[int], earlier: set[int]) -> BeforeMerge:
        asked = self._asked(self.base | mission | earlier)
        answers, labels = self._answers(self.learner, client, asked), self.y_test[asked]
        parts = (accuracy_on(c, answers, labels) for c in (self.base, earlier, mission))
        return BeforeMerge(client, *parts)

    def _evaluate(
        self,
        new: set[int],
        before: list[BeforeMerge],
        merged: bool,
        sizes: tuple[int, int],
        seconds: tuple[float, float],
    ) -> StepReport:
        asked = self._asked(self.known)
        labels = self.y_test[asked]
        judges = self._judges()
        detection = self._detection(judges[0]) if self.config.unknown else {}
        answers = {node: self._answers(self.learner, node, asked) for node in judges}
        if merged:
            self._note(answers[judges[0]], labels)
        everybody = [answers[node] for node in judges]
        of_client = {c: answers.get(c, everybody[0]) for c in self.clients}
        alone = self._alone(asked)
        return StepReport(
            step=len(self.reports) + 1,
            classes=len(self.known),
            new_classes=len(new),
            accuracy=_required([accuracy_on(self.known, a, labels) for a in everybody]),
            base=mean([accuracy_on(self.base, a, labels) for a in everybody]),
            field=mean([accuracy_on(self.known - self.base, a, labels) for a in everybody]),
            own=mean([accuracy_on(self.own[c], of_client[c], labels) for c in self.clients]),
            alone=mean([accuracy_on(self.known, a, labels) for a in alone.values()]),
            alone_own=mean([accuracy_on(self.own[c], a, labels) for c, a in alone.items()]),
            before=before,
            bytes_up=sizes[0],
            bytes_down=sizes[1],
            learn_seconds=seconds[0],
            merge_seconds=seconds[1],
            state_bytes=sum(map(self.learner.state_bytes, self.clients)) / len(self.clients),
            unknown={name: found.auroc for name, found in detection.items()},
            detection=detection,
            discovery=self.discoveries.report(
                self.learner, judges[0], self.known, (self.x_test, self.y_test)
            ),
        )

    def _note(self, answers: Tensor, labels: Tensor) -> None:
        """Keep an evaluation of all stages, in place of the last if there is no new one."""
        new = self.known.difference(*self.stages)
        if new:
            self.stages.append(new)
        else:
            self.history.evaluations.pop()
        self.history.append(Evaluation(confusions(self.stages, answers, labels)))

    def _alone(self, asked: Tensor) -> dict[int, Tensor]:
        """Answers of clients that never meet anybody; those who were taught something."""
        if self.hermits is None:
            return {}
        taught = [client for client in self.clients if self.own[client] or self.base]
        return {client: self._answers(self.hermits, client, asked) for client in taught}

    def _detection(self, judge: int) -> dict[str, Detection]:
        asked = self._asked(self.known)
        if bool(asked.all()):
            return {}
        return reported_scores(self.learner.known_scores(judge, self.x_test), asked)

    # -- parts ------------------------------------------------------------------------------

    def _learners(self) -> list[Learner]:
        """What answers, then those beside it: clients on their own, and who is told at once."""
        return [x for x in (self.learner, self.hermits, self.discoveries.twin) if x is not None]

    def _judges(self) -> list[int]:
        """Who is evaluated after a merge: the server, or all clients where there is none."""
        return [SERVER] if self.scenario.has_server else list(self.clients)

    def _answers(self, learner: Learner, node: int, asked: Tensor) -> Tensor:
        return learner.predict(node, self.x_test[asked])

    def _asked(self, classes: set[int]) -> Tensor:
        """``(M,)`` whether a test sample is of one of ``classes``."""
        return torch.isin(self.y_test, torch.tensor(sorted(classes), dtype=torch.int64))

    def _labels(self, mission: Mission) -> Tensor:
        return self.y[torch.tensor(mission.rows, dtype=torch.int64)]

    def _at(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows, dtype=torch.int64)
        return self.x[chosen], self.y[chosen]


def _required(values: list[float | None]) -> float:
    value = mean(values)
    if value is None:
        raise ConfigError("no test samples of the classes taught; give more test samples")
    return value
