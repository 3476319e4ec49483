"""The method ``protected``: secure aggregation, differential privacy, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from protocl.config.validation import NOT_NEGATIVE, POSITIVE, ranged
from protocl.errors import ConfigError, as_config_error
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.prototypes import HeadConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from protocl.federation.privacy.release import PrivateRelease
    from protocl.federation.privacy.vector import StatisticsLayout
    from protocl.memory import PrototypeMemory
    from protocl.model.answers import Answering


@dataclass
class ProtectedPrototypesConfig(HeadConfig):
    """The server learns sums of masked statistics, with noise where it is wanted.

    Settings of :class:`protocl.federation.secure.strategy.ProtectedPrototypes`.

    The public class list is all classes of the benchmark, or of the task that is deployed.
    ``epsilon`` and ``delta`` hold for a sample that is added or removed, over all rounds, since
    each sample is in one release.

    Attributes:
        step: quantisation step of fixed point.
        secure: use secure aggregation.
        colluders: clients that may pool what they know with the server; a secure sum needs two more
            that have something new and stay. 0 for (n - 1) / 3 of n clients, at least 1.
        noise: who adds noise: ``none``, ``local``, ``distributed`` or ``central``
            (:mod:`protocl.federation.privacy.release`).
        clip: largest norm of a sample's features; longer ones are shortened. With noise only.
        epsilon: the budget.
        delta: its probability of failure, well below 1 over the number of samples.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(ProtectedPrototypesConfig())  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Protected federated prototypes", stored="the sum of all clients' class statistics"
    )
    deployable: ClassVar[bool] = True

    name: str = "protected"
    step: float = ranged(2.0**-16, POSITIVE)
    secure: bool = True
    colluders: int = ranged(0, NOT_NEGATIVE)
    noise: Literal["none", "local", "distributed", "central"] = "none"
    clip: float = 1.0
    epsilon: float = 8.0
    delta: float = 1e-5

    def build(self, setup: FederationSetup) -> ProtectedMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return ProtectedMethod(self, setup)

    def describe(self) -> dict[str, str | float | bool]:
        """What a result says about protection."""
        described: dict[str, str | float | bool] = {"secure": self.secure, "noise": self.noise}
        if self.secure:
            described["colluders"] = self.colluders
        if self.noise != "none":
            described |= {"epsilon": self.epsilon, "delta": self.delta, "clip": self.clip}
        return described

    def build_release(self, layout: StatisticsLayout, asked: int) -> PrivateRelease | None:
        """Clipping and noise; None with ``noise=none``.

        Args:
            layout: of the vectors.
            asked: clients asked in a round. Two thirds of them carry the noise together with
                ``distributed``, as so many must stay for the sum to succeed.

        Raises:
            ConfigError: a value is out of range.
        """
        from protocl.federation.privacy.mechanism import GaussianMechanism
        from protocl.federation.privacy.release import PrivateRelease
        from protocl.federation.secure.keys import Agreement

        if self.noise == "none":
            return None
        with as_config_error("method."):
            mechanism = GaussianMechanism.for_budget(self.clip, self.epsilon, self.delta)
        contributors = Agreement.threshold(asked) if self.noise == "distributed" else 1
        return PrivateRelease(mechanism, layout, self.noise, contributors)


def _require_colluders(config: ProtectedPrototypesConfig, setup: FederationSetup) -> None:
    """Refuse a number of colluders for which no round could ever have enough clients."""
    clients, needed = setup.federation.clients, config.colluders + 2
    if config.secure and setup.keep is None and clients < needed:  # a simulation has no more
        raise ConfigError(
            f"method.colluders={config.colluders}: a secure sum needs {needed} clients with "
            f"something new, and there are {clients}; lower it, or raise clients"
        )


class ProtectedMethod:
    """See :class:`protocl.federation.config.Method`.

    Attributes:
        privacy: for the result.
    """

    def __init__(self, config: ProtectedPrototypesConfig, setup: FederationSetup) -> None:
        from flwr.app import ArrayRecord

        from protocl.federation.privacy.vector import StatisticsLayout
        from protocl.federation.secure.client import ProtectedClient
        from protocl.federation.secure.strategy import ProtectedPrototypes
        from protocl.memory.rows import class_id_of

        federation = setup.federation
        _require_colluders(config, setup)
        self.head = config.head.build()
        empty = self.head.new_memory(
            setup.feature_dim, exact=True, step=config.step, fingerprint=setup.fingerprint
        )
        ids = map(class_id_of, setup.class_names) if setup.class_names else range(setup.n_classes)
        layout = StatisticsLayout(empty, ids)
        asked = max(federation.min_clients, round(federation.participation * federation.clients))
        self.release = config.build_release(layout, asked)
        if self.release is not None and config.noise == "distributed" and not config.secure:
            raise ConfigError(
                "method.noise=distributed without secure aggregation shows the server vectors "
                "with a fraction of the noise; use method.secure=true, or method.noise=local"
            )
        self.privacy = config.describe()
        self.strategy = ProtectedPrototypes(
            layout,
            self.release,
            secure=config.secure,
            colluders=config.colluders,
            participation=federation.participation,
            min_clients=federation.min_clients,
            wait=setup.wait,
            deadline=federation.deadline,
            seed=setup.seed,
            checkpoints=None if setup.keep is None else setup.checkpoints,
        )
        self.client = ProtectedClient(
            setup.load, layout, self.release,
            secure=config.secure, colluders=config.colluders, keep=setup.keep,
        )  # fmt: skip
        self.client_app = self.client.app()
        self.initial: ArrayRecord = ArrayRecord()

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self.strategy.memory

    def final_answer(self) -> Answering:
        """What a model on disk keeps of it."""
        return self.head, self.memory

    def classify(self, arrays: ArrayRecord, features: Tensor) -> Tensor:
        """See :class:`protocl.federation.config.Method`."""
        return self.head.fit(self.memory).predict(features)

    def resume(self) -> int:
        """See :class:`protocl.federation.config.Method`.

        Raises:
            ConfigError: always; a second run over the same samples would be a second release.
        """
        raise ConfigError("resume=true: method=protected keeps no checkpoints; run it anew")
