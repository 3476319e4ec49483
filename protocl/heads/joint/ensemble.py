"""Heads that vote: the mean of their probabilities. KLDA's ensemble."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from protocl.errors import PrecisionWarning
from protocl.heads.base import Head
from protocl.heads.joint.parts import member_memories
from protocl.heads.linear_discriminant import LinearDiscriminant
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.maps.joint import Joint

_REACH = 0.01
"""Least mean kernel of two samples of a class that tells it from others."""


class Ensemble(Head):
    """Several heads, each on the statistics of its own map; they answer by their mean softmax.

    Logits are logarithms of the mean probabilities. The statistics are those of a :class:`.Joint`
    map, so that merged ones give the ensemble of all samples.

    Args:
        heads: of levels ``mean`` and ``shared``.
        sharpness: by what logits are multiplied before the softmax.
        dtype: precision of the logits.

    Example:
        >>> from protocl.heads import NearestMean
        >>> x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [4.0, 1.0], [4.5, 0.5]])
        >>> head = Ensemble([NearestMean(), LinearDiscriminant(shrinkage=0.1)])
        >>> memory = head.new_memory(2).update(x, torch.tensor([0, 0, 1, 1]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 1.0], [4.2, 0.8]])).tolist()
        [0, 1]

    Raises:
        ValueError: there are no heads, or one needs statistics of another level or kind.
    """

    keeps_digits: ClassVar[bool] = True
    _factor: Tensor

    def __init__(
        self, heads: Sequence[Head], *, sharpness: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(dtype=dtype)
        levels = {head.required_level for head in heads}
        if not levels or levels - {"mean", "shared"} or any(head.raw_means for head in heads):
            raise ValueError(
                f"heads that need levels {sorted(levels)}: expected one or more of 'mean', 'shared'"
            )
        if ordered := [head.ordered_by for head in heads if head.ordered_by]:
            raise ValueError(
                f"a head with {ordered[0]}= keeps what depends on the order of samples, which no "
                "sums under one map hold: leave it out"
            )
        self.members = nn.ModuleList(heads)
        self.sharpness = sharpness
        self.required_level = "shared" if "shared" in levels else "mean"

    def feature_map(self, feature_dim: int) -> FeatureMap:
        return Joint([head.feature_map(feature_dim) for head in self.heads])

    @property
    def heads(self) -> list[Head]:
        """The heads that vote, in the order of their blocks."""
        return [head for head in self.members if isinstance(head, Head)]

    def _fit(self, memory: PrototypeMemory) -> None:
        for head, part in zip(self.heads, member_memories(memory), strict=True):
            head.fit(part)
        factor = torch.tensor(self._sharpness_for(memory), dtype=torch.float64)
        self._set(_factor=factor.to(memory.device))

    def _sharpness_for(self, memory: PrototypeMemory) -> float:
        return self.sharpness

    def _logits(self, features: Tensor) -> Tensor:
        assert isinstance(self._under, Joint)
        blocks = self._under.blocks(self._feature_dim)
        scores = [
            (head.mapped_logits(features[:, block]) * self._factor).log_softmax(1)
            for head, block in zip(self.heads, blocks, strict=True)
        ]
        total = torch.logsumexp(torch.stack(scores), 0) - math.log(len(scores))
        return total.to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the fitted parameters of all members occupy."""
        return super().nbytes + sum(head.nbytes for head in self.heads)


class KLDAEnsemble(Ensemble):
    """KLDA-E: linear discriminants on random Fourier features of several seeds, that vote.

    Args:
        members: number of discriminants.
        dim: random features of each; 5,000 in the paper. The statistics take
            ``16 (members dim)^2`` bytes.
        gamma: see :class:`.RandomFourier`.
        shrinkage: towards a multiple of the identity, see :class:`.LinearDiscriminant`.
        released: multiply scores by ``2 / N``, as the authors' code does by inverting the scatter
            undivided; with many samples all votes are then nearly uniform, and their sum is one of
            scores in effect.
        seed: of the first member; the others have the next ones.
        dtype: precision of the logits.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [4.0, 1.0], [4.5, 0.5]])
        >>> head = KLDAEnsemble(dim=16)
        >>> memory = head.new_memory(2).update(x, torch.tensor([0, 0, 1, 1]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 1.0], [4.2, 0.8]])).tolist()
        [0, 1]

    Source: Momeni et al. 2024, "Continual learning using a kernel-based method over foundation
    models", and the authors' code.
    """

    def __init__(
        self,
        members: int = 3,
        *,
        dim: int = 500,
        gamma: float = 1e-3,
        shrinkage: float = 1e-4,
        released: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if members < 1:
            raise ValueError(f"members={members}: expected one discriminant or more")
        super().__init__(
            [
                LinearDiscriminant(
                    shrinkage,
                    target="scaled",  # random features have a variance of 1 / dim
                    map=f"random_fourier:dim={dim}:gamma={gamma!r}:seed={seed + number}",
                    dtype=dtype,
                )
                for number in range(members)
            ],
            dtype=dtype,
        )  # fmt: skip
        self.dim, self.gamma, self.shrinkage = dim, gamma, shrinkage
        self.released, self.seed = released, seed

    def _fit(self, memory: PrototypeMemory) -> None:
        super()._fit(memory)
        self._warn_of_reach(memory)

    def _warn_of_reach(self, memory: PrototypeMemory) -> None:
        """Say where samples of a class are no more alike than any others."""
        counts, sums = memory.counts.double(), memory.sums
        pairs = float((counts * (counts - 1)).sum())
        # A sample's product with itself is 1, in each member.
        alike = float(sums.square().sum() / len(self.members) - counts.sum())
        if not pairs or alike >= _REACH * pairs:
            return
        warnings.warn(
            f"gamma={self.gamma:g}: the kernel of two samples of a class is {alike / pairs:.1g} in "
            "the mean, so that nothing tells classes apart; 0.1 to 0.25 over the median squared "
            "distance of two samples is a good choice",
            PrecisionWarning,
            stacklevel=3,
        )

    def _sharpness_for(self, memory: PrototypeMemory) -> float:
        return 2 / memory.total if self.released else self.sharpness
