"""The method ``fedcof``: a covariance at the bytes of class means, from how they spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from protocl.config.sections import HeadChoice, head
from protocl.config.validation import AT_LEAST_1, NOT_NEGATIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.prototypes import ExchangeConfig, PrototypesConfig, PrototypesMethod
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.group_sums import GroupSums
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.estimates.variance import kind_with_variance, with_variance

if TYPE_CHECKING:
    from protocl.heads.base import Head
    from protocl.memory import PrototypeMemory

_MASKED = (
    "the covariance is read off the means of single clients, which a sum over clients hides, "
    "masked or not; for masked sums use method=protected method.head=lda, which sums exact second "
    "moments"
)


@dataclass(frozen=True)
class GroupMerge:
    """One memory with an estimated second moment, of the clients' class means.

    Attributes:
        subsamples: how clients deal their classes into groups.
        weights: see :meth:`.GroupMoments.memory`.
        gamma: see :func:`.with_variance`.
    """

    subsamples: SubSamples
    weights: Literal["samples", "groups"] = "samples"
    gamma: float = 0.1

    def __call__(self, memories: Sequence[PrototypeMemory]) -> PrototypeMemory:
        """The merged memory of what each client sent, in the order of clients."""
        estimated = GroupMoments(memories, self.subsamples).memory(self.weights)
        return with_variance(estimated, self.gamma)

    @property
    def sums(self) -> GroupSums:
        """What edges of a tree merge in its place, which adds up."""
        return GroupSums(self.subsamples, self.weights)

    def of_sums(self, sums: PrototypeMemory) -> PrototypeMemory:
        """The merged memory of what edges summed up."""
        return with_variance(self.sums.memory(sums), self.gamma)

    def kind(self, empty: PrototypeMemory) -> PrototypeMemory:
        """A memory without samples of the kind that is merged from those like ``empty``."""
        return kind_with_variance(GroupMoments.kind(empty, self.weights), self.gamma)


@dataclass
class GroupMeansConfig(ExchangeConfig):
    """Settings of what is estimated from means, besides those of the exchange.

    Attributes:
        means: of each class and client, of random parts of its samples; the bytes are proportional,
            and the more, the better the estimate.
        weights: ``samples`` (FedCOF) or ``groups``; see :meth:`.GroupMoments.memory`.
        gamma: variance that is added to each feature's; less of it for many clients.
    """

    means: int = ranged(1, AT_LEAST_1)
    weights: Literal["samples", "groups"] = "samples"
    gamma: float = ranged(0.1, NOT_NEGATIVE)

    @classmethod
    def refusal(cls, setting: str, value: Any) -> str | None:
        """Why a setting of another method has no place here."""
        return f"cannot be: {_MASKED}" if setting in ("secure", "colluders", "noise") else None

    def build_merge(self) -> GroupMerge:
        """See :class:`.ExchangeConfig`."""
        return GroupMerge(SubSamples(self.means), self.weights, self.gamma)

    def build_sanitise(self) -> SubSamples:
        """See :class:`.ExchangeConfig`: labels become those of groups."""
        return SubSamples(self.means)

    def build_empty(self, head: Head, width: int, fingerprint: str | None) -> PrototypeMemory:
        """See :class:`.ExchangeConfig`: counts and sums alone."""
        return head.new_memory(
            width, level="mean", exact=self.exact, step=self.step, fingerprint=fingerprint
        )

    def kind_of_merged(self, empty: PrototypeMemory) -> PrototypeMemory:
        """See :class:`.ExchangeConfig`."""
        return self.build_merge().kind(empty)

    def beside(self, exact: PrototypeMemory) -> PrototypeMemory:
        """See :class:`.HeadConfig`: exact sums, with the same variance added."""
        return with_variance(exact, self.gamma)

    def require_estimable(self, setup: FederationSetup) -> None:
        """Refuse what means of groups do not tell.

        Raises:
            ConfigError: the head needs more than one covariance, or is to choose its own strength,
                or classes have names for ids.
        """
        if self.means > 1 and setup.class_names:
            raise ConfigError(
                f"method.means={self.means}: classes that are known by name have ids without room "
                "for groups; use method.means=1"
            )
        wanted = self.head.build()
        if wanted.required_level not in ("mean", "shared") or wanted.raw_means:
            raise ConfigError(
                f"method.head={self.head.name} needs statistics of level "
                f"'{wanted.required_level}', and means of groups tell one covariance for all "
                "classes; use ridge, lda or nearest_mean"
            )
        self.require_given_strength()


@dataclass
class FedCOFConfig(GroupMeansConfig, PrototypesConfig):
    """FedCOF: the covariance that classifies is estimated from how the clients' means spread.

    Attributes:
        head: FedCOF's ridge regression on the scatter within classes, or any head that takes one
            covariance for all classes.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(FedCOFConfig())  # accuracy after two rounds of five clients
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(title="FedCOF", stored="each client's class means")

    name: str = "fedcof"
    head: HeadChoice = head("ridge", scatter="within", normalize=True, regularization=1e-6)

    def build(self, setup: FederationSetup) -> PrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        if not self.keep_contributions:
            raise ConfigError(f"method.keep_contributions=false: {_MASKED}")
        if self.rank:
            raise ConfigError(
                f"method.rank={self.rank}: no second moment is sent; use method.rank=0"
            )
        self.require_estimable(setup)
        return PrototypesMethod(self, setup)
