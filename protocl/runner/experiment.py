"""One experiment, from its configuration to its result: ``protocl run``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from protocl.backbones import Backbone
from protocl.config import ExperimentConfig
from protocl.config.arguments import Argument, Settings, expand
from protocl.config.compose import compose, load
from protocl.config.presets import parse
from protocl.data.augmentation.image_augmentation import TrainingAugmentation, named_augmentation
from protocl.errors import ConfigError, as_config_error, two_samples_a_batch
from protocl.io.atomic import locked
from protocl.io.checkpoint import CheckpointFolder
from protocl.metrics.history import History
from protocl.metrics.recorder import EvaluationRecorder
from protocl.runner.adapted_cache import AdaptedBackbones
from protocl.runner.context import CHECKPOINTS, RunContext
from protocl.runner.feature_run import FeatureRun
from protocl.runner.kind import Kind
from protocl.runner.model import kept_answer, write_model
from protocl.runner.prepare import Prepared, prepare, seed_generators
from protocl.runner.result import backbone_of, build_result, discovery_of, memory_of
from protocl.trackers import open_trackers

if TYPE_CHECKING:
    from protocl.runner.together.context import SharedContext

BACKBONE = "backbone"


class ExperimentKind(Kind[ExperimentConfig]):
    """Runs of a strategy on a class-incremental benchmark.

    After each experience a checkpoint of everything is written.
    """

    name = "experiment"

    def settle(self, arguments: Sequence[Argument]) -> list[Settings]:
        """See :class:`protocl.runner.kind.Kind`."""
        return expand(parse(arguments))

    def compose(self, settings: Settings) -> ExperimentConfig:
        """See :class:`protocl.runner.kind.Kind`."""
        return compose(settings)

    def load(self, arguments: Sequence[Argument]) -> list[ExperimentConfig]:
        """See :func:`protocl.config.compose.load`."""
        return load(arguments)

    def execute(self, run: RunContext[ExperimentConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        if run.config.unknown_parts > 1 and not run.config.unknown:
            raise ConfigError(
                f"unknown_parts={run.config.unknown_parts}: parts serve scores of unknown inputs; "
                "give unknown=true as well"
            )
        seed_generators(run.config.seed)
        prepared = prepare(run)
        if run.config.unknown and len(prepared.stream) < 2:
            raise ConfigError(
                "unknown=true: a single experience leaves no classes for later, which are the "
                "unknown ones; give benchmark.n_experiences=2 or more"
            )
        with as_config_error(f"strategy={run.config.strategy.name}: "):
            learner = run.config.strategy.learner(prepared.setup(run))
        if learner is not None:
            return FeatureRun(run, prepared, learner).finish()
        if run.config.unknown:
            raise ConfigError(
                f"unknown=true: strategy={run.config.strategy.name} keeps no memory of features "
                "that stay; take a strategy on a frozen backbone (protocl list strategies --frozen)"
            )
        return _Run(run, prepared).finish()

    def ready(self, configs: Sequence[ExperimentConfig]) -> None:
        """See :class:`protocl.runner.kind.Kind`."""
        if any(config.strategy.adaptation is not None for config in configs):
            # Its import makes a logger, which only the first of several processes may.
            import_module("avalanche.training")

    def execute_together(self, run: SharedContext[ExperimentConfig]) -> dict[str, Any]:
        """See :func:`protocl.runner.together.experiment.execute_together`."""
        from protocl.runner.together.experiment import execute_together

        return execute_together(run)


EXPERIMENT = ExperimentKind()
run_experiment = EXPERIMENT.carry_out


class EpochProgress:
    """Avalanche plugin that reports the start of each training epoch.

    Args:
        report: called with index and number of the epoch.
    """

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Report where the training stands."""
        self._report(strategy.clock.train_exp_epochs, strategy.train_epochs)


class _Run:
    """The state of one run of an Avalanche strategy; :meth:`finish` takes it to its end."""

    def __init__(self, run: RunContext[ExperimentConfig], prepared: Prepared) -> None:
        from avalanche.training.determinism.rng_manager import RNGManager

        from protocl.runner.tensorboard import EpochLoss, EventLogger

        self.run = run
        self.config = run.config
        self.random = RNGManager
        self.released = CheckpointFolder(run.folder / CHECKPOINTS / BACKBONE)
        self.backbone: Backbone | None = None
        self.adapted = AdaptedBackbones(run.config.cache)
        self.prepared = prepared
        self.events = EventLogger(open_trackers(run.config, run.folder))
        self.epochs = EpochProgress(lambda epoch, n: self._tell("train", epoch=epoch, n_epochs=n))
        self.loss = EpochLoss(self.events)
        self.shared = {
            **self.prepared.shared_objects(),
            "events": self.events,
            "epochs": self.epochs,
            "loss": self.loss,
        }
        if not self._continue():
            self._begin()

    @property
    def n_experiences(self) -> int:
        return len(self.prepared.stream)

    def finish(self) -> dict[str, Any]:
        """Train and evaluate on the experiences that remain, then write memory and weights."""
        try:
            for t in range(len(self.history.evaluations), self.n_experiences):
                self._learn(t)
                self._save()
            self._conclude()
            return self._result()
        finally:
            self.events.close()

    def _begin(self) -> None:
        """Build the strategy for the first experience."""
        from protocl.runner.tensorboard import evaluation_plugin

        self.events.purge(0)
        self.history = History()
        self.discovery: list[dict[str, Any]] = []
        self.recorder = EvaluationRecorder()
        setup = self.prepared.setup(
            self.run,
            plugins=[*self._augmentation(), self.recorder, self.epochs, self.loss],
            evaluator=evaluation_plugin(self.events),
        )
        with as_config_error(f"strategy={self.config.strategy.name}: "):
            self.strategy = self.config.strategy.build(setup)

    def _augmentation(self) -> list[TrainingAugmentation]:
        augmentation = named_augmentation(self.config.benchmark.augmentation)
        return [] if augmentation is None else [TrainingAugmentation(augmentation)]

    def _continue(self) -> bool:
        """Take up the newest checkpoint that is whole; False where there is none."""
        if self.run.checkpoints.files():
            self.backbone = self.released.load_newest({}, self.run.device)
        images = self.prepared
        if self.backbone is not None:
            self._encode(self.backbone)
        state = self.run.take_up(self.shared)
        if state is None:
            self.prepared, self.backbone = images, None
            return False
        self.strategy, self.recorder = state["strategy"], state["recorder"]
        self.history = History.from_dict(state["history"])
        self.discovery = state["discovery"]
        self.random.__setstate__(state["random"])
        lost = self.strategy.clock.train_iterations + 1
        self.events.purge(lost)
        # The curve counts experiences: of strategies that do not iterate it was lost as well.
        self.events.log_curve(self.history.stream_accuracy[lost:], first=lost)
        return True

    def _learn(self, t: int) -> None:
        """Train on experience ``t`` and evaluate on the test stream up to it."""
        benchmark = self.prepared.benchmark
        self._tell("train")
        adapts = t == 0 and self.config.strategy.adaptation is not None
        with self.run.phases.phase("train", t), two_samples_a_batch("strategy.train_mb_size"):
            if adapts:
                self._adapt()
            else:
                self.strategy.train(benchmark.train_stream[t])
        if adapts and self.n_experiences > 1:
            self._release_backbone()
        self._tell("eval")
        with self.run.phases.phase("eval", t):
            self.strategy.eval(self.prepared.benchmark.test_stream[: t + 1])
        self.history.append(self.recorder.last)
        self.events.log_curve(self.history.stream_accuracy[t:], first=t)
        found = discovery_of(self.strategy, self.prepared.stream, t)
        self.discovery += [] if found is None else [found]

    def _adapt(self) -> None:
        """Train on the first experience, with the backbone that another run adapted if any has."""
        device, given = self.strategy.device, self.prepared
        path = self.adapted.path(self.config, given.fingerprint, given.data_hash, device)
        with locked(path):
            backbone = self.adapted.load(path, device)
            if backbone is not None:
                self.strategy.adopt_backbone(backbone)
            self.strategy.train(given.benchmark.train_stream[0])
            if backbone is None:
                self.adapted.save(path, self.strategy.model.backbone)

    def _release_backbone(self) -> None:
        """Go on with features where the first experience has made the backbone what it stays.

        It is written first: a checkpoint refers to the features as to any data, so that whoever
        continues from it has to be able to compute them anew.
        """
        backbone = self.strategy.release_backbone()
        self.released.save(0, backbone, {})
        self._encode(backbone)
        self.backbone = backbone

    def _encode(self, backbone: Backbone) -> None:
        self.prepared = self.prepared.encoded(self.run, backbone)
        self.shared |= self.prepared.shared_objects("encoded_")

    def _save(self) -> None:
        """Write the result so far, then the checkpoint from which the run can continue."""
        self.events.flush()
        self.run.write(self._result(), complete=False)
        state = {
            "strategy": self.strategy,
            "recorder": self.recorder,
            "history": self.history.to_dict(),
            "discovery": self.discovery,
            "random": self.random.__getstate__(),
        }
        self.run.save(len(self.history.evaluations), state, self.shared)

    def _conclude(self) -> None:
        self._tell("report")
        trained = self.backbone is None and self.config.strategy.trains_backbone
        backbone = backbone_of(self.strategy) if trained else self.prepared.backbone
        assert backbone is not None  # the runner has put it there
        answer, memory = kept_answer(self.config.strategy, self.strategy), memory_of(self.strategy)
        if memory is not None and not isinstance(answer, tuple):
            memory.save(self.run.folder / "memory.safetensors")  # it did not answer
        discovered = getattr(getattr(self.strategy, "method", None), "discovered", None)
        if discovered is not None:
            discovered.save(self.run.folder / "discovered.safetensors")
        write_model(
            self.run.folder,
            answer,
            backbone,
            self.prepared.sample_shape,
            self.prepared.class_names,
            batch_size=self.config.strategy.eval_mb_size if trained else self.config.settled_batch,
        )

    def _result(self) -> dict[str, Any]:
        trained = backbone_of(self.strategy) if self.config.strategy.trains_backbone else None
        memory = memory_of(self.strategy)
        result = build_result(self.config, self.prepared, self.history, memory, trained)
        return {**result, **({"discovery": self.discovery} if self.discovery else {})}

    def _tell(self, phase: str, **more: int) -> None:
        done, accuracy = len(self.history.evaluations), self.history.latest
        self.run.tell(phase, done, total=self.n_experiences, accuracy=accuracy, **more)
