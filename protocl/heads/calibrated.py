"""A linear layer trained on samples of class Gaussians: CCVR, the alignment of SLCA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from protocl.config.validation import is_number, require_choice
from protocl.heads.centred import CentredHead
from protocl.heads.gaussian.descent import Descent
from protocl.heads.linear_discriminant import LinearDiscriminant
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.buffers import outside_inference_mode
from protocl.memory.estimates.gaussians import ClassGaussians, Covariance
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.precision import without_autocast

_SQUARED_NORM = 100.0
"""Mean squared norm to which samples are scaled, so that one rate suits features of any unit."""

_LEVELS: dict[str, Level] = {
    "auto": "shared", "shared": "shared", "full": "full", "diagonal": "diagonal",
}  # fmt: skip


class GaussianCalibrated(CentredHead):
    """A linear layer with softmax, trained on samples of ``N(m_c, S_c)``, as many of each class.

    Statistics of clients add up exactly, and so does what the samples are drawn from; the draws and
    the order of the steps come from ``seed``, so that the layer is a function of the memory.
    Features are centred, and scaled to a mean squared norm of 100, before the layer is trained;
    what is learned is stated for features as they are.

    Args:
        covariance: ``"full"``, ``"shared"`` or ``"diagonal"`` ones; ``"auto"``: full where the
            memory has them, else shared.
        per_class: samples of each class in an epoch.
        epochs, batch_size, lr, momentum, weight_decay: see :class:`.Descent`.
        start: ``"zero"``, or ``"lda"``: the linear discriminant's layer, of which a few epochs at a
            low rate change little.
        logit_norm: temperature of normalised logits (SLCA: 0.1); not from zero, which they destroy.
        eps: variance that each feature has more.
        seed: of the draws.
        map: see :class:`.Head`.
        dtype: precision of the training, the weights and the logits.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [4.0, 1.0], [4.5, 0.5]])
        >>> head = GaussianCalibrated(epochs=2)
        >>> memory = head.new_memory(2).update(x, torch.tensor([0, 0, 1, 1]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 1.0], [4.2, 0.8]])).tolist()
        [0, 1]

    Source: Luo et al. 2021, "No fear of heterogeneity: classifier calibration for federated
    learning with non-IID data" (CCVR); Zhang et al. 2023, "SLCA: slow learner with classifier
    alignment", section 3.3.
    """

    required_level: Level = "shared"
    _weights: Tensor
    _biases: Tensor

    def __init__(
        self,
        covariance: Covariance = "auto",
        *,
        per_class: int = 100,
        epochs: int = 10,
        batch_size: int = 256,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        start: Literal["zero", "lda"] = "zero",
        logit_norm: float | None = None,
        eps: float = 1e-4,
        seed: int = 0,
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        require_choice("covariance", covariance, tuple(_LEVELS))
        require_choice("start", start, ("zero", "lda"))
        for name, value in (
            ("per_class", per_class), ("epochs", epochs), ("batch_size", batch_size), ("lr", lr),
        ):  # fmt: skip
            if not (is_number(value) and value > 0):
                raise ValueError(f"{name}={value!r}: expected a number > 0")
        if logit_norm is not None and (start == "zero" or not logit_norm > 0):
            raise ValueError(
                f"logit_norm={logit_norm} with start='{start}': expected a temperature > 0 and a "
                "start other than zero, whose logits have no norm; use start='lda'"
            )
        self.covariance, self.per_class, self.eps = covariance, per_class, eps
        self.start, self.seed = start, seed
        self.descent = Descent(epochs, batch_size, lr, momentum, weight_decay, logit_norm)
        self.required_level = _LEVELS[covariance]

    @outside_inference_mode
    def _fit(self, memory: PrototypeMemory) -> None:
        gaussians = ClassGaussians(memory, self.covariance, self.eps)
        self._move(memory.means)
        generator = torch.Generator().manual_seed(self.seed)
        first = self._epoch(gaussians, generator)
        size = float(first[0].square().sum(1).mean() / _SQUARED_NORM) ** 0.5 or 1.0
        epochs = (
            (x.div_(size).to(self.dtype), rows)
            for x, rows in self._epochs(gaussians, generator, first)
        )
        weight, bias = self._begin(memory, size)
        with without_autocast(memory.device.type):
            weight, bias = self.descent.run(weight, bias, epochs)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"lr={self.descent.lr}: the layer diverged; use a lower rate")
        self._set(_weights=weight / size, _biases=bias)

    def _epochs(
        self, gaussians: ClassGaussians, generator: torch.Generator, first: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        yield first
        for _ in range(self.descent.epochs - 1):
            yield self._epoch(gaussians, generator)

    def _epoch(
        self, gaussians: ClassGaussians, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Centred samples ``(N, W)`` float64 in the order of steps, and their rows ``(N,)``."""
        drawn = gaussians.draw(self.per_class, generator)
        classes, device = len(drawn), drawn.device
        order = torch.randperm(classes * self.per_class, generator=generator).to(device)
        rows = torch.arange(classes, device=device).repeat_interleave(self.per_class)[order]
        return drawn.sub_(self._centre.double()).flatten(0, 1)[order], rows

    def _begin(self, memory: PrototypeMemory, size: float) -> tuple[Tensor, Tensor]:
        """Weight ``(C, W)`` of centred and scaled features, and bias ``(C,)``."""
        if self.start == "zero":
            zeros = torch.zeros(len(memory), memory.width, dtype=self.dtype, device=memory.device)
            return zeros, zeros[:, 0].clone()
        lda = LinearDiscriminant(map=memory.feature_map, dtype=torch.float64).fit(memory)
        return (lda._weights * size).to(self.dtype), lda._biases.to(self.dtype)

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        torch.addmm(self._biases[chosen], queries, self._weights[chosen].T, out=out)
