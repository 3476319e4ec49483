"""Gradient descent of a linear layer on drawn samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_NORM = 1e-7


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent with momentum; the rate falls to zero with a cosine.

    Attributes:
        epochs: epochs after which it is zero.
        batch_size: samples of a step.
        lr, momentum, weight_decay: of the step.
        logit_norm: None, or the temperature ``t`` of SLCA's normalised logits: each sample's are
            divided by ``t`` times the mean over groups of classes of the norm of its logits there.
    """

    epochs: int
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    logit_norm: float | None = None

    def run(
        self,
        weight: Tensor,
        bias: Tensor,
        epochs: Iterable[tuple[Tensor, Tensor]],
        groups: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Weight ``(C, W)`` and bias ``(C,)`` after some epochs, in the precision of the samples.

        Args:
            weight, bias: where to begin.
            epochs: of each, samples ``(N, W)`` and their rows ``(N,)``, in the order of steps.
            groups: numbers of classes of the tasks, in the order of rows; one task by default.
        """
        with torch.inference_mode(False), torch.enable_grad():
            weight = weight.detach().clone().requires_grad_()
            bias = bias.detach().clone().requires_grad_()
            optimizer = torch.optim.SGD(
                [weight, bias], lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
            for x, rows in epochs:
                batches = zip(x.split(self.batch_size), rows.split(self.batch_size), strict=True)
                for part, targets in batches:
                    logits = self._normalised(functional.linear(part, weight, bias), groups)
                    optimizer.zero_grad()
                    torch.autograd.backward(functional.cross_entropy(logits, targets))
                    optimizer.step()
                schedule.step()
        return weight.detach(), bias.detach()

    def _normalised(self, logits: Tensor, groups: Sequence[int]) -> Tensor:
        if self.logit_norm is None:
            return logits
        parts = logits.split(list(groups) or [logits.shape[1]], dim=1)
        norms = torch.stack([part.norm(dim=1) + _LEAST_NORM for part in parts])
        return logits / norms.mean(0)[:, None] / self.logit_norm
