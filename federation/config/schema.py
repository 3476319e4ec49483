"""What a federated run is made of: the typed schema of every key of ``protocl federate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from protocl.config.schema import RunConfig
from protocl.config.sections import Registered
from protocl.config.validation import (
    AT_LEAST_0,
    AT_LEAST_1,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    ranged,
)
from protocl.federation.client.partition import PartitionConfig
from protocl.federation.wire.limits import Limits
from protocl.registry import METHODS

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import ArrayRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import Strategy
    from torch import Tensor, nn

    from protocl.federation.client.client import Loader
    from protocl.federation.client.state import StateStore
    from protocl.federation.server.sampling import Options
    from protocl.memory import PrototypeMemory


class Method(Protocol):
    """A federated learner, ready to run.

    Attributes:
        strategy: the server's side.
        client_app: the clients' side.
        initial: arrays that the strategy starts from.
        memory: the merged memory, or None where there is none.
    """

    @property
    def strategy(self) -> Strategy: ...

    @property
    def client_app(self) -> ClientApp: ...

    @property
    def initial(self) -> ArrayRecord: ...

    @property
    def memory(self) -> PrototypeMemory | None: ...

    def classify(self, arrays: ArrayRecord, x: Tensor) -> Tensor:
        """Class ids ``(N,)`` that the present model gives ``x``, what ``setup.load`` gives."""

    def resume(self) -> int:
        """Continue from the checkpoint; the number of rounds done, 0 without a checkpoint."""


@dataclass(frozen=True)
class MethodInfo:
    """What reports say about a method.

    Attributes:
        title: name as the field writes it.
        stored: what the server keeps, in words.
    """

    title: str
    stored: str


@dataclass
class FederationSetup:
    """All that a method needs besides its own settings; made by the runner.

    Attributes:
        load: gives a client's features and labels; its samples where the method asks for them.
        backbone: makes features of samples.
        feature_dim: width ``D`` of the features.
        n_classes: number of class ids.
        class_names: of all classes, where clients share them by name; they take the place of ids.
        fingerprint: of the backbone that made the features.
        seed: of the run.
        federation: how rounds are conducted.
        states: where the clients' states are kept.
        checkpoints: folder of the server's checkpoints.
        wait: seconds to wait for ``federation.min_clients`` before a round.
        keep: folder of what clients must not lose besides their states; None in simulations, whose
            clients are gone with their run.
        limits: what one client may claim and send.
    """

    load: Loader
    backbone: nn.Module
    feature_dim: int
    n_classes: int
    fingerprint: str
    seed: int
    federation: FederationConfig
    states: StateStore
    checkpoints: Path
    wait: float = 60.0
    keep: Path | None = None
    class_names: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def options(self) -> Options:
        """How our strategies conduct a round."""
        from protocl.federation.server.sampling import Options

        return Options(
            participation=self.federation.participation,
            min_clients=self.federation.min_clients,
            wait=self.wait,
            evaluate=self.federation.evaluate,
            limits=self.limits,
            seed=self.seed,
        )


@dataclass
class TitledConfig(Registered):
    """Settings of a method of any kind, of which reports say the title.

    Attributes:
        info: what reports say about it.
    """

    info: ClassVar[MethodInfo]

    @property
    def title(self) -> str:
        """The method's name, and what of its settings tells it from others of that name."""
        return self.info.title


@dataclass
class MethodConfig(TitledConfig):
    """Settings of a federated method; a method adds its own in a subclass.

    Registered under the entry-point group ``protocl.federated``, a subclass is usable as
    ``method=NAME`` and its fields as ``method.FIELD=VALUE``.

    Attributes:
        personal: there is no common model; each client is measured on test data of its own classes
            (the method then has ``personal_evaluations``).
        deployable: it can be taken up again after any of its processes died, as a deployment needs;
            its strategy is a :class:`protocl.federation.server.resumable.LastingStrategy`.
    """

    registry = METHODS
    personal: ClassVar[bool] = False
    deployable: ClassVar[bool] = False

    @property
    def needs_samples(self) -> bool:
        """Whether clients are given samples rather than features of the frozen backbone."""
        return False

    def build(self, setup: FederationSetup) -> Method:
        """The method with these settings."""
        raise NotImplementedError(f"{type(self).__name__}.build is not defined")


@dataclass
class FederationConfig:
    """How rounds are conducted; these keys may be typed without ``federation.``.

    Attributes:
        clients: number of clients; 0 for as many as the data name (``partition=client``).
        rounds: number of rounds; for ``partition.growth=stream``, unless given, as many as
            ``benchmark.n_experiences``.
        participation: share of the clients asked in each round.
        min_clients: clients that must be online before a round begins.
        evaluate: share of the clients that classify test data of their own classes after each
            round, in [0, 1]; the server's own evaluation does not need them.
        deadline: seconds after which a round is closed; later replies count for the next.
        engine: ``in_process``, or ``ray`` for Flower's simulation engine.
        lost: share of the replies that never arrive (``in_process``), in [0, 1).
        late: share of the replies that arrive a round late (``in_process``), in [0, 1).
        remember: clients keep their state between rounds; ``false`` saves its memory where there
            is one round.
    """

    clients: int = ranged(10, AT_LEAST_0)
    rounds: int = ranged(5, AT_LEAST_1)
    participation: float = ranged(1.0, POSITIVE_SHARE)
    min_clients: int = ranged(1, AT_LEAST_1)
    evaluate: float = ranged(0.0, SHARE)
    deadline: float = ranged(3600.0, POSITIVE)
    engine: Literal["in_process", "ray"] = "in_process"
    lost: float = ranged(0.0, SHARE)
    late: float = ranged(0.0, SHARE)
    remember: bool = True


@dataclass
class FederateConfig(RunConfig):
    """One federated run.

    Attributes:
        benchmark: the data; its experiences matter for ``partition.growth=stream``.
        backbone: the frozen feature extractor that all clients share.
        method: what is exchanged and learnt.
        federation: clients and rounds.
        partition: who holds which samples, and from when on.
        limits: what one client may claim and send; of methods that merge statistics.
        cache: folder of the features that frozen backbones computed.
        verify: compare the merged memory with that of all samples in one place at the end.
        unknown: also measure after each round how well test samples of classes to come are told
            from those known; of methods with a memory, where ``partition.growth=stream``.
    """

    name: str = "federated-${benchmark.name}-${method.name}"
    method: MethodConfig = field(default_factory=MethodConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    limits: Limits = field(default_factory=Limits)
    cache: str = "~/.cache/protocl/features"
    verify: bool = False
    unknown: bool = False
