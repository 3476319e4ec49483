"""What an experiment is made of: the typed schema of every key a user can set.

The values come from YAML files and the command line (:mod:`protocl.config.compose`); the fields and
types here decide which keys exist and what fits in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from omegaconf import MISSING
from torch import nn

from protocl.backbones import BackboneConfig
from protocl.config.info import StrategyInfo
from protocl.config.sections import Registered
from protocl.config.validation import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Range,
    ranged,
)
from protocl.data import BenchmarkConfig, Unlabelled
from protocl.errors import ConfigError
from protocl.registry import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import Tensor

    from protocl.memory import PrototypeMemory


_IMAGES = Range("a number of at least 1, fixed or tuned", lambda v: isinstance(v, str) or v >= 1)


@dataclass
class Setup:
    """All that a strategy needs besides its own settings; made by the runner.

    Attributes:
        model: a :class:`protocl.backbones.Classifier` on ``device``; ``model.backbone`` gives
            features ``(N, feature_dim)`` and ``model.classifier`` logits ``(N, n_classes)``.
        feature_dim: width of the features.
        n_classes: number of classes in the whole stream.
        device: where the experiment runs.
        seed: seed of the run, for strategies with a random state of their own.
        plugins: Avalanche plugins of the runner, to be placed after the strategy's own.
        evaluator: Avalanche ``EvaluationPlugin`` that logs to TensorBoard.
        fingerprint: of the backbone that makes the features, also when they were encoded before
            the run; a prototype memory carries it.
        unlabelled: samples that come without labels beside those of each experience, or None.
    """

    model: nn.Module
    feature_dim: int
    n_classes: int
    device: torch.device
    seed: int
    plugins: list[Any]
    evaluator: Any
    fingerprint: str | None = None
    unlabelled: Unlabelled | None = None


class AdaptsOnce(Protocol):
    """A strategy whose backbone stays as the first experience has left it."""

    def adopt_backbone(self, backbone: Any) -> None:
        """Use this adapted backbone, and adapt none; called before the first experience."""

    def release_backbone(self) -> Any:
        """Hand over the backbone after the first experience, and take features for images then."""


class FeatureLearner(Protocol):
    """What learns the features of a backbone that stays, without Avalanche.

    Attributes:
        memory: the statistics, or None before the first features.
    """

    memory: PrototypeMemory | None

    def learn(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Take in an experience: features ``(B, D)``, labels and task labels ``(B,)`` a batch."""

    def final_answer(self) -> Any:
        """What a model on disk keeps of it; None where nothing was learned."""

    def to(self, device: torch.device) -> None:
        """Move to the device of the features."""

    def logits(self, features: Tensor, tasks: Tensor, width: int) -> Tensor:
        """Logits ``(N, width or more)`` of features ``(N, D)`` with task labels ``(N,)``."""


@runtime_checkable
class SharedLearner(FeatureLearner, Protocol):
    """A :class:`FeatureLearner` that several processes can be, each of a share of the samples."""

    def learn_share(
        self,
        batches: Iterable[tuple[Tensor, Tensor, Tensor]],
        classes: Tensor,
        tasks: Tensor,
        add_up: Callable[[PrototypeMemory], PrototypeMemory],
    ) -> None:
        """Take in an experience of which other processes have other samples.

        Args:
            batches: of this process, as for :meth:`learn`; at least one, if without samples.
            classes: ``(C,)`` of all samples of the experience.
            tasks: ``(C,)`` their task labels.
            add_up: makes of the statistics here those of all processes; called once.
        """


@dataclass
class StrategyConfig(Registered):
    """Settings that all strategies share. A strategy adds its own in a subclass.

    Registered under the entry-point group ``protocl.strategies``, a subclass is usable as
    ``strategy=NAME`` and its fields as ``strategy.FIELD=VALUE``. A field declares all that its
    values must be: its type (``Literal["mean", "sum"]``, ``float | Literal["auto"]``) and, as
    ``rate: float = ranged(0.1, POSITIVE)``, its range (:mod:`protocl.config.validation`). What a
    part of the method has for settings is stated there and not again:

    * ``loss: MyLoss = field(default_factory=MyLoss)`` makes the fields of a dataclass settings,
      ``strategy.loss.FIELD``; its ``__post_init__`` may call :func:`.require_declared`;
    * ``plugin: Part = part(MyPlugin, strength=2.0)`` (:mod:`protocl.config.sections`) those
      arguments of a constructor that a configuration can give, ``strategy.plugin.ARGUMENT``, here
      with another default for one of them; :meth:`build` calls ``self.plugin.build(...)``;
    * ``head: HeadChoice = head("lda")`` a registered head with its arguments, ``strategy.head=NAME
      strategy.head.ARGUMENT=VALUE``.

    Attributes:
        name: the registered name.
        train_epochs: passes over the data of each experience.
        train_mb_size: samples in a training mini-batch.
        eval_mb_size: samples in an evaluation mini-batch.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: learning rate.
        momentum: momentum of SGD.
        weight_decay: L2 penalty of the optimizer.
    """

    registry = STRATEGIES
    info: ClassVar[StrategyInfo]

    train_epochs: int = ranged(1, AT_LEAST_0)
    train_mb_size: int = ranged(64, AT_LEAST_1)
    eval_mb_size: int = ranged(256, AT_LEAST_1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = ranged(0.1, POSITIVE)
    momentum: float = ranged(0.0, BELOW_1)
    weight_decay: float = ranged(0.0, NOT_NEGATIVE)

    @classmethod
    def refusal(cls, setting: str, value: Any) -> str | None:
        """What to say of ``strategy.SETTING=VALUE`` where that is no choice that there is.

        Args:
            setting: key without ``strategy.``, one that is unknown or holds other settings.
            value: as typed.

        Returns:
            What the strategy has in its place, and what to type: the rest of a sentence. None
            where the nearest key says it better.
        """
        names = {declared.name for declared in fields(cls)}
        if setting.partition(".")[0] != "head" or "head" in names:
            return None
        if "answer" in names:
            return "has no head; strategy.answer=NAME puts one in the place of its classifier"
        return "has no head to set; strategy=frozen strategy.head=NAME answers by the head NAME"

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone changes during the run.

        When it does not, the runner may encode every image once before the first experience
        and give the strategy a model whose backbone is the identity on those features.
        """
        return True

    @property
    def adaptation(self) -> dict[str, Any] | None:
        """Settings that decide how the first experience adapts a backbone that then stays.

        None where it does not adapt it, or later experiences change it as well. Otherwise the
        strategy has the methods of :class:`AdaptsOnce`, through which the runner lets other runs
        use what this one adapted, and encodes every image once.
        """
        return None

    @property
    def unused(self) -> dict[str, str]:
        """Settings that change nothing beside the present values of the others, with the reason.

        Whoever sets one of them is told; a strategy adds its own. The name of a section stands for
        all in it, ``"section.setting"`` for one of them.
        """
        return {"momentum": "optimizer=adam has none to set"} if self.optimizer == "adam" else {}

    @property
    def needs_same_bits(self) -> bool:
        """Whether features have to be the same on every machine, so that nothing is measured.

        Their last bits depend on how many samples go through the backbone at a time.
        """
        return False

    @property
    def old_prototypes(self) -> str:
        """What becomes of the prototypes of old classes when the backbone has moved, in words.

        Part of ``result.json``: "none" (it keeps no prototypes), "exact" (the backbone does not
        move), "left", "compensated (METHOD)", "refreshed" or "trained".
        """
        return "none" if self.trains_backbone else "exact"

    def kept_answer(self, strategy: Any) -> Any:
        """What answers for a strategy that has learned, for the model that the run leaves behind.

        Args:
            strategy: as :meth:`build` gave it, after its last experience.

        Returns:
            The head and its memory, or a :class:`protocl.model.answers.Answer`. None, the default,
            takes what the strategy or one of its plugins gives as ``final_answer()``, else its
            model's own classifier.
        """
        return None

    def learner(self, setup: Setup) -> FeatureLearner | None:
        """What does the same as :meth:`build` on features, where nothing is trained.

        The runner then goes through the stream itself and imports no Avalanche, which takes
        seconds; ``setup`` has neither plugins nor evaluator. It is written to checkpoints with
        pickle. None, the default, has :meth:`build` called.
        """
        return None

    def feature_learner(self, setup: Setup) -> FeatureLearner | None:
        """As :meth:`learner`, also where the backbone has been adapted before it stays."""
        return self.learner(setup)

    def adapt_together(self, setup: Setup, experience: Any) -> Any:
        """The backbone that several processes adapt to their first experience; :attr:`adaptation`.

        Each of them calls this, with the same model and data.
        """
        raise ConfigError(
            f"strategy '{self.name}' does not adapt its backbone in several processes: start it "
            "without torchrun (jobs=N runs a sweep side by side)"
        )

    def build(self, setup: Setup) -> Any:
        """The Avalanche strategy with these settings, ready for its first ``train`` call."""
        raise NotImplementedError(f"{type(self).__name__}.build is not defined")


@dataclass
class SlurmConfig:
    """What a job of Slurm takes; ``launcher=slurm``.

    Attributes:
        partition: None for the cluster's own choice.
        minutes: after so many a job is ended, submitted again and continued.
        cores: of a job.
        gpus: of a job.
        cluster: ``"slurm"``; ``"local"`` has submitit start processes here, to try it. None takes
            Slurm where there is one.
    """

    partition: str | None = None
    minutes: int = ranged(240, AT_LEAST_1)
    cores: int = ranged(4, AT_LEAST_1)
    gpus: int = ranged(0, AT_LEAST_0)
    cluster: str | None = None


@dataclass
class RunConfig:
    """What runs of all kinds have: data, features, a random state, and where they are written.

    Attributes:
        name: folder under ``output``; runs of one name are meant to be compared.
        benchmark: the data.
        backbone: the feature extractor.
        seed: seed of python's, numpy's and torch's generators, of the class order and of the
            initial weights.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        output: folder that receives ``<name>/<time>-<seed>/``.
        resume: continue the newest unfinished run of the same configuration.
        jobs: runs of a sweep that are worked on at the same time, each in its own process.
        launcher: where: in processes here, as tasks of Ray, or as jobs of Slurm.
        slurm: what such a job takes.
        tracker: where curves go: ``tensorboard``, ``csv``, ``mlflow``, ``wandb`` or another
            registered one, several in brackets, none with ``[]``.
    """

    name: str = MISSING
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    seed: int = ranged(0, SEED)
    device: str = "auto"
    output: str = "runs"
    resume: bool = False
    jobs: int = ranged(1, AT_LEAST_1)
    launcher: Literal["local", "ray", "slurm"] = "local"
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    tracker: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class ExperimentConfig(RunConfig):
    """One run of a strategy in a class-incremental stream.

    Attributes:
        strategy: the learner.
        cache: folder of the features that frozen backbones computed.
        encoding_batch: images that go through a frozen backbone at a time, of which features
            depend in their last bits: a number; ``"fixed"`` for a rule that is the same on every
            machine; ``"tuned"`` for the quickest here, measured once, where there are so many
            images that measuring pays, and written to the run's ``config.yaml``. None is
            ``"fixed"`` where sums are exact, else ``"tuned"``.
        unknown: also measure after each experience how well scores tell samples of later classes.
        unknown_parts: above 1, every score by so many parts of each class, too (``parts_NAME``).
    """

    name: str = "${benchmark.name}-${strategy.name}"
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    cache: str = "~/.cache/protocl/features"
    encoding_batch: int | Literal["fixed", "tuned"] | None = ranged(None, _IMAGES)
    unknown: bool = False
    unknown_parts: int = ranged(1, AT_LEAST_1)

    @property
    def settled_batch(self) -> int | None:
        """``encoding_batch`` where it is a number; None for that of the rule."""
        return self.encoding_batch if isinstance(self.encoding_batch, int) else None
