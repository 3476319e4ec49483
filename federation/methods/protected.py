"""The method ``protected``: secure aggregation, differential privacy, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from protocl.config.validation import NOT_NEGATIVE, POSITIVE, SHARE, ranged
from protocl.errors import ConfigError, as_config_error
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.prototypes import HeadConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from protocl.federation.privacy.release import PrivateRelease
    from protocl.federation.privacy.vector import StatisticsLayout
    from protocl.federation.secure.identities import Identities
    from protocl.federation.secure.protocol.identity import Roster
    from protocl.federation.secure.protocol.schemes import Scheme
    from protocl.memory import PrototypeMemory
    from protocl.model.answers import Answering


@dataclass
class ProtectedPrototypesConfig(HeadConfig):
    """The server learns sums of masked statistics, with noise where it is wanted.

    Settings of :class:`protocl.federation.secure.strategy.ProtectedPrototypes`.

    The public class list is all classes of the benchmark, or of the task that is deployed, that
    ``limits.classes`` accepts; clients leave samples of others out, and their logs say how many.
    ``epsilon`` and ``delta`` hold for a sample that is added or removed, over all rounds, since
    each sample is in one release.

    Attributes:
        step: quantisation step of fixed point.
        secure: use secure aggregation. ``true``: all but a third of the clients must stay, and the
            server is honest but curious. ``pinned``: the server may lie; up to 128 clients that
            know each other's keys beforehand, of ``n`` of whom ``floor(2 n / 3) + 1`` must stay (so
            of three none may leave, of six one). ``graph``: for many clients; each shares with some
            others only, and the server is honest but curious.
        colluders: clients that may pool what they know with the server; a secure sum needs two more
            that have something new and stay. 0 for (n - 1) / 3 of n clients, at least 1, and with
            ``graph`` for the share ``colluding``.
        colluding: share of the clients that may collude, which the graph is chosen for.
        leaving: share of the clients that may leave before the end of a sum, likewise.
        honest: contributors that are honest and stay; with ``noise=distributed`` they alone make up
            the noise, so that epsilon holds against all others too. 0 for as many as remain if
            as many collude, or leave, as may (:meth:`honest_of`).
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
    secure: Literal[True, False, "pinned", "graph"] = True
    colluders: int = ranged(0, NOT_NEGATIVE)
    colluding: float = ranged(0.2, SHARE)
    leaving: float = ranged(0.2, SHARE)
    honest: int = ranged(0, NOT_NEGATIVE)
    noise: Literal["none", "local", "distributed", "central"] = "none"
    clip: float = 1.0
    epsilon: float = 8.0
    delta: float = 1e-5

    def build(self, setup: FederationSetup) -> ProtectedMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return ProtectedMethod(self, setup)

    def build_scheme(self, roster: Roster | None) -> Scheme:
        """Who shares with whom.

        Args:
            roster: with ``secure=pinned``.

        Raises:
            ConfigError: no graph is good for these shares.
        """
        from protocl.federation.secure.protocol.schemes import Complete, Graph

        if roster is not None:
            return roster.scheme
        if self.secure == "graph":
            with as_config_error("method."):
                return Graph(self.colluding, self.leaving)
        return Complete()

    def honest_of(self, scheme: Scheme, asked: int) -> int:
        """Contributors that are honest and stay, of all that are asked in a round.

        If none is stated, the fewer of those that remain if as many leave as may and the expected
        colluders are among who stays, and those that remain if all but ``t - 1`` are honest.
        """
        if self.honest:
            return self.honest
        colluders = self.colluders or scheme.colluders(asked)
        staying = scheme.staying(asked) - colluders
        return max(1, min(staying, asked - scheme.most_pooling(asked)))

    def build_release(
        self, layout: StatisticsLayout, scheme: Scheme, asked: int
    ) -> PrivateRelease | None:
        """Clipping and noise; None with ``noise=none``.

        Args:
            layout: of the vectors.
            scheme: who shares with whom.
            asked: clients asked in a round.

        Raises:
            ConfigError: a value is out of range.
        """
        from protocl.federation.privacy.mechanism import GaussianMechanism
        from protocl.federation.privacy.release import PrivateRelease

        if self.noise == "none":
            return None
        with as_config_error("method."):
            mechanism = GaussianMechanism.for_budget(self.clip, self.epsilon, self.delta)
        contributors = self.honest_of(scheme, asked) if self.noise == "distributed" else 1
        return PrivateRelease(mechanism, layout, self.noise, contributors)

    def describe(
        self, scheme: Scheme, release: PrivateRelease | None, asked: int
    ) -> dict[str, Any]:
        """What a result says about protection.

        Args:
            scheme: who shares with whom.
            release: what :meth:`build_release` gave.
            asked: clients asked in a round.
        """
        described: dict[str, Any] = {"secure": self.secure, "noise": self.noise}
        if self.secure:
            described |= {"colluders": self.colluders, "against": scheme.against}
        if self.secure == "graph":
            described |= {"colluding": self.colluding, "leaving": self.leaving}
        if release is not None:
            described |= {"epsilon": self.epsilon, "delta": self.delta, "clip": self.clip}
            if self.noise == "distributed":
                described["honest"] = release.contributors
            pooling = scheme.most_pooling(asked) if self.secure else 0
            staying = scheme.staying(asked) if self.secure else 1
            described["epsilon_against"] = _epsilons(release, self.delta, asked, staying, pooling)
        return described


def _epsilons(
    release: PrivateRelease, delta: float, asked: int, staying: int, pooling: int
) -> dict[str, dict[str, float]]:
    """Epsilon by audience and by change of the data."""
    from protocl.federation.privacy.guarantees import audiences, epsilons

    return {
        name: {
            "colluders": audience.colluders,
            **epsilons(release.mechanism, release.layout, delta, audience.noise),
        }
        for name, audience in audiences(release, asked, staying, pooling).items()
    }


def _require_feasible(
    config: ProtectedPrototypesConfig, setup: FederationSetup, scheme: Scheme, asked: int
) -> None:
    """Refuse settings with which no round could ever have enough clients."""
    if not config.secure or setup.keep is not None:  # a simulation has no more
        return
    clients, needed = setup.federation.clients, config.colluders + 2
    if clients < needed:
        raise ConfigError(
            f"method.colluders={config.colluders}: a secure sum needs {needed} clients with "
            f"something new, and there are {clients}; lower it, or raise clients"
        )
    colluders = config.colluders or scheme.colluders(asked)
    if config.noise == "distributed" and config.honest + colluders > asked:
        raise ConfigError(
            f"method.honest={config.honest}: {asked} clients are asked in a round, of whom "
            f"{colluders} may collude; expected {asked - colluders} at most"
        )
    if asked < scheme.staying(asked):
        raise ConfigError(
            f"{asked} of {clients} clients are asked in a round, and {scheme.staying(asked)} must "
            f"stay with secure={scheme.name}{scheme.remark}; raise participation"
        )


def _public_classes(setup: FederationSetup) -> list[int]:
    """Ids of the classes that have a place in every vector, ascending.

    Raises:
        ConfigError: the limits accept none of the classes, or fewer than there are in all.
    """
    from protocl.memory.rows import class_id_of

    known = map(class_id_of, setup.class_names) if setup.class_names else range(setup.n_classes)
    allowed = setup.limits.allowed_ids()
    ids = sorted(set(known) if allowed is None else set(known).intersection(allowed.tolist()))
    if not ids:
        raise ConfigError(
            f"limits.classes={setup.limits.classes!r:.80}: none of them is a class of this "
            f"federation; expected some of {setup.class_names or range(setup.n_classes)!r:.80}"
        )
    if len(ids) > (most := setup.limits.max_classes_in_all):
        raise ConfigError(
            f"limits.max_classes_in_all={most}: the public list has {len(ids)} classes; raise "
            "it, or name fewer in limits.classes"
        )
    return ids


def _identities(config: ProtectedPrototypesConfig, setup: FederationSetup) -> Identities | None:
    """Who signs in a federation with ``secure=pinned``; None in others.

    Raises:
        ConfigError: the folder of this server or node has a roster, and the run would not use it.
    """
    from protocl.federation.secure.identities import IdentitiesOnDisk, SimulatedIdentities

    on_disk = None if setup.keep is None else IdentitiesOnDisk(setup.keep)
    if config.secure != "pinned":
        if on_disk is not None and on_disk.has_roster:
            raise ConfigError(
                f"method.secure={config.secure}: {setup.keep} pins a roster, so expected pinned"
            )
        return None
    return on_disk or SimulatedIdentities(setup.federation.clients)


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

        federation = setup.federation
        self.head = config.head.build()
        empty = self.head.new_memory(
            setup.feature_dim, exact=True, step=config.step, fingerprint=setup.fingerprint
        )
        layout = StatisticsLayout(empty, _public_classes(setup))
        asked = max(federation.min_clients, round(federation.participation * federation.clients))
        identities = _identities(config, setup)
        roster = None if identities is None else identities.roster
        if roster is not None and setup.keep is not None:
            asked = len(roster.members)  # a deployment does not know how many there will be
        scheme = config.build_scheme(roster)
        _require_feasible(config, setup, scheme, asked)
        self.release = config.build_release(layout, scheme, asked)
        if self.release is not None and config.noise == "distributed" and not config.secure:
            raise ConfigError(
                "method.noise=distributed without secure aggregation shows the server vectors "
                "with a fraction of the noise; use method.secure=true, or method.noise=local"
            )
        self.privacy = config.describe(scheme, self.release, asked)
        self.strategy = ProtectedPrototypes(
            layout,
            self.release,
            secure=bool(config.secure),
            colluders=config.colluders,
            scheme=scheme,
            roster=roster,
            limits=setup.limits,
            participation=federation.participation,
            min_clients=federation.min_clients,
            wait=setup.wait,
            deadline=federation.deadline,
            seed=setup.seed,
            checkpoints=None if setup.keep is None else setup.checkpoints,
        )
        self.client = ProtectedClient(
            setup.load, layout, self.release,
            secure=bool(config.secure), colluders=config.colluders, scheme=scheme,
            signer_of=identities, limits=setup.limits, keep=setup.keep,
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
