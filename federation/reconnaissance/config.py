"""The typed schema of every key of ``protocl reconnaissance``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from protocl.config.schema import RunConfig
from protocl.config.validation import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, ranged
from protocl.errors import ConfigError
from protocl.federation.config.schema import TitledConfig
from protocl.federation.reconnaissance.scenario import SERVER
from protocl.registry import Registry

METHODS = Registry("protocl.reconnaissance", "method of federated reconnaissance")


class Learner(ABC):
    """A method in a scenario: the three verbs that a user's own method defines.

    Nodes are numbered: clients from 0, the server is -1. A method keeps what each of them knows;
    only :meth:`merge` may let it pass from one to another.
    """

    @abstractmethod
    def learn(self, node: int, features: Tensor, labels: Tensor) -> None:
        """A mission's samples ``(N, D)`` with class ids ``(N,)`` arrive at ``node``.

        Before the first step the base classes arrive so at the server, and :meth:`publish` is
        called.
        """

    @abstractmethod
    def merge(self, meetings: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The nodes of each pair tell each other what the other lacks, in that order.

        Returns:
            Bytes towards the server and away from it; between clients all count as towards.
        """

    @abstractmethod
    def predict(self, node: int, features: Tensor) -> Tensor:
        """Class ids ``(N,)`` among all classes that ``node`` knows."""

    def predict_openly(self, node: int, features: Tensor) -> Tensor:
        """As :meth:`predict`, by the rule for classes and categories, though there be no category.

        What was named later and what was taught by name are so compared by one rule.
        """
        return self.predict(node, features)

    def discover(self, node: int, features: Tensor) -> Tensor:
        """A mission's samples ``(N, D)`` without labels arrive at ``node``.

        Returns:
            ``(N,)`` what each is taken for: id of the row without a name that it went into, -1
            where it looked known, -2 where it was with too few others.

        Raises:
            ConfigError: the method discovers nothing, which is the default.
        """
        raise ConfigError(
            "scenario.unlabelled: this method learns nothing from samples without labels; take "
            "method=prototypes, or unlabelled=0"
        )

    def name(self, node: int, names: Mapping[int, int]) -> None:
        """``node`` hears of which class its rows without a name are: row -> class id."""
        raise NotImplementedError(f"{type(self).__name__}.name is not defined")

    def categories(self, node: int) -> int | None:
        """How many categories without a name ``node`` knows; None where a method has none."""
        return None

    def category_of(self, node: int, rows: Tensor) -> Tensor:
        """The category ``(N,)`` that ``node`` takes each of some rows ``(N,)`` for."""
        return rows

    def publish(self, clients: int) -> int:
        """All clients take over what the server knows; bytes of it for one client.

        By default the server meets each client once.
        """
        _, down = self.merge([(SERVER, client) for client in range(clients)])
        return down // clients

    def known_scores(self, node: int, features: Tensor) -> dict[str, Tensor]:
        """Scores ``(N,)``, high for samples of known classes, by name; none by default."""
        return {}

    def state_bytes(self, node: int) -> int:
        """Bytes that ``node`` keeps from one step to the next; 0 where a method does not count."""
        return 0


@dataclass(frozen=True)
class LearnerSetup:
    """All that a method needs besides its own settings; made by the runner.

    Attributes:
        clients: number of clients.
        feature_dim: width ``D`` of the features.
        n_classes: number of class ids.
        seed: of the run.
        fingerprint: of the backbone that made the features.
        discovers: whether samples without labels will come.
    """

    clients: int
    feature_dim: int
    n_classes: int
    seed: int
    fingerprint: str
    discovers: bool = False


@dataclass
class LearnerConfig(TitledConfig):
    """Settings of a method, which adds its own in a subclass.

    Registered under the entry-point group ``protocl.reconnaissance``, a subclass is usable as
    ``method=NAME`` and its fields as ``method.FIELD=VALUE``.

    Attributes:
        keeps_data: whether training samples are kept from one step to the next.
        learns_alone: whether a client learns anything without meeting the server.
    """

    registry = METHODS
    keeps_data: ClassVar[bool] = False
    learns_alone: ClassVar[bool] = True

    def build(self, setup: LearnerSetup) -> Learner:
        """A method that knows nothing yet."""
        raise NotImplementedError(f"{type(self).__name__}.build is not defined")


@dataclass
class ScenarioConfig:
    """How a scenario is drawn.

    The field classes are those after ``benchmark.base_classes`` in the class order.

    Attributes:
        file: a saved scenario, in place of everything below.
        clients: number of clients; with ``schedule=client`` there are those that the data name.
        schedule: ``disjoint`` (each class with one client), ``overlapping`` (each with
            ``holders`` of them), ``handover`` (the second half of each class's samples comes later
            and to another client), ``random`` (every mission draws classes; clients may
            collide), or ``client`` (each sample with the client that the data name).
        field_classes: how many of the field classes take part; None for all.
        base_samples: samples of each base class that are taught; None for all.
        classes_per_mission: classes in a mission.
        samples_per_class: samples of a class in a mission; None for all that the client will see.
        holders: clients among which ``overlapping`` divides a class.
        skew: concentration of the Dirichlet distribution from which their shares are drawn; None
            for equal shares.
        missions: steps with missions at most; None for all that the samples allow.
        merge: ``star`` (all with the server) or ``gossip`` (random pairs, no server).
        every: steps from one merge to the next.
        finish: after the last step, let gossip go on until everybody knows everything.
        redraw: draw anew which samples are for training and which for the test.
        base_in_memory: the base classes are part of what is known and tested.
        unlabelled: share of each class of a mission that comes without labels, for methods that
            discover.
        revisited: samples of each base class that are not taught from the start, but come to the
            clients among the unlabelled.
        named_after: steps after which a client is told what it found in a mission: each row gets
            the name of the class that most of its samples are of. None for never.
    """

    file: str | None = None
    clients: int = ranged(5, AT_LEAST_1)
    schedule: Literal["disjoint", "overlapping", "handover", "random", "client"] = "disjoint"
    field_classes: int | None = ranged(None, AT_LEAST_1)
    base_samples: int | None = ranged(None, AT_LEAST_1)
    classes_per_mission: int = ranged(5, AT_LEAST_1)
    samples_per_class: int | None = ranged(None, AT_LEAST_1)
    holders: int = 2
    skew: float | None = ranged(None, POSITIVE)
    missions: int | None = ranged(None, AT_LEAST_1)
    merge: Literal["star", "gossip"] = "star"
    every: int = ranged(1, AT_LEAST_1)
    finish: bool = True
    redraw: bool = False
    base_in_memory: bool = True
    unlabelled: float = ranged(0.0, SHARE)
    revisited: int = ranged(0, AT_LEAST_0)
    named_after: int | None = ranged(None, AT_LEAST_1)


@dataclass
class ReconnaissanceConfig(RunConfig):
    """One run of a method in a scenario.

    Attributes:
        benchmark: the data; ``benchmark.base_classes`` of them are known from the start.
        backbone: the frozen feature extractor that all clients share.
        method: what learns.
        scenario: who sees what when, and who meets whom.
        alone: also run the same method without any meeting, for the gain from merging.
        unknown: also ask after each merge which queries are of classes that nobody taught yet.
        cache: folder of the features that frozen backbones computed.
    """

    name: str = "reconnaissance-${benchmark.name}-${method.name}"
    method: LearnerConfig = field(default_factory=LearnerConfig)
    scenario: ScenarioConfig = field(default_factory=ScenarioConfig)
    alone: bool = True
    unknown: bool = False
    cache: str = "~/.cache/protocl/features"
