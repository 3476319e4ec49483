"""Holding on to what a posterior over class prototypes predicted before an experience."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional

from protocl.heads.bayesian.posterior import ConjugatePosterior
from protocl.memory.precision import in_full_precision
from protocl.strategies.training.teacher import Teacher


@in_full_precision
def predictive_distillation(
    log_joint: Tensor, old_log_joint: Tensor, temperature: float = 2.0
) -> Tensor:
    """``T^2 KL(p_old || p)``, a scalar: mean over samples, over the classes known before.

    Args:
        log_joint: ``(N, C)``, columns of the ``C`` old classes, with gradient.
        old_log_joint: ``(N, C)`` of the model and posterior before the experience.
        temperature: ``T`` by which both are divided.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2, on the
    posterior predictive.
    """
    old = functional.log_softmax(old_log_joint.detach() / temperature, dim=1)
    new = functional.log_softmax(log_joint / temperature, dim=1)
    divergence = functional.kl_div(new, old, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


class HeldPredictions:
    """A teacher and its posterior, to which :func:`predictive_distillation` holds an experience.

    Args:
        weight: of the loss; 0 for no teacher.
        temperature: of the loss.

    Attributes:
        teacher: the model before the experience; None if there is none.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        if weight < 0 or not temperature > 0:
            raise ValueError(
                f"distillation={weight}, temperature={temperature}: expected a weight of at "
                "least 0 and a temperature above 0"
            )
        self.weight, self.temperature = weight, temperature
        self.teacher: Teacher | None = None
        self._posterior: ConjugatePosterior | None = None

    def begin(self, model: nn.Module, layer: str | None, posterior: ConjugatePosterior) -> None:
        """Copy model and posterior before an experience."""
        if self.weight:
            self.teacher, self._posterior = Teacher(model, layer), copy.deepcopy(posterior)

    def end(self) -> None:
        """Drop the copies."""
        self.teacher = self._posterior = None

    def loss(
        self,
        posterior: ConjugatePosterior,
        features: Tensor,
        inputs: Tensor,
        tasks: Tensor | None,
    ) -> Tensor | float:
        """The weighted loss of features ``(N, D)`` of inputs ``(N, ...)``; 0 without a teacher."""
        if self.teacher is None or self._posterior is None:
            return 0.0
        old = self._posterior.log_joint(self.teacher.features(inputs, tasks))
        known = posterior.rows_of(self._posterior.class_ids)
        now = posterior.log_joint(features)[:, known]
        return self.weight * predictive_distillation(now, old, self.temperature)
