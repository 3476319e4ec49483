"""The first session in several processes: each takes its share of every mini-batch.

The mini-batches are those of a single process, in its order and with its augmentation, and
``train_mb_size`` counts the samples of all shares. ``DistributedDataParallel`` averages gradients;
shares of different sizes count by their samples. Weights are therefore those of one process up to
rounding, but for BatchNorm that is trained along, which normalises each share by itself.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from avalanche.core import SupervisedPlugin
from torch.nn.modules.batchnorm import _BatchNorm

from protocl.backbones import Backbone
from protocl.backbones.adaptation.whole import BatchNormStatistics
from protocl.distributed.collectives import broadcast_, peers
from protocl.distributed.training import data_parallel, share_of
from protocl.strategies.frozen.base import FrozenBackbone

logger = logging.getLogger(__name__)


def adapt_together(strategy: FrozenBackbone, experience: Any) -> Backbone:
    """The backbone that all processes of the group adapt to their first experience.

    Args:
        strategy: one on each process, with the same model.
        experience: the same.
    """
    strategy.plugins.remove(strategy.prototypes)  # statistics come later, and from all
    shared = _shares(strategy)
    if shared:
        # Last: after what augments the batch, and before what is computed of it.
        strategy.plugins.append(SharedBatches())
    strategy.plugins.insert(0, WholeBatches())
    strategy._distributed_check = True  # its list of plugins that know nothing of processes
    with peers():
        strategy.train(experience)
    return strategy.release_backbone()  # type: ignore[return-value]  # of a Classifier


def _shares(strategy: FrozenBackbone) -> bool:
    """Whether the session has gradients to share; says so where it has not."""
    assert strategy.session is not None
    if isinstance(strategy.session.adaptation, BatchNormStatistics):
        logger.warning(
            "session.adapt=bn averages statistics over whole batches, which is not distributed: "
            "every process passes all of them"
        )
        return False
    if any(isinstance(module, _BatchNorm) for module in strategy.model.modules()):
        logger.warning(
            "BatchNorm normalises the share of each process by itself: with small shares, a larger "
            "strategy.train_mb_size"
        )
    return True


class WholeBatches(SupervisedPlugin[Any]):
    """Serves the mini-batches of a single process, in the same order everywhere."""

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Agree on the random numbers of the epoch, and have Avalanche leave the samples whole."""
        state = torch.get_rng_state()
        broadcast_(state, 0)
        torch.set_rng_state(state)
        strategy.dataloader.distributed_sampling = False


class SharedBatches(SupervisedPlugin[Any]):
    """Has each process compute the gradients of its share of a mini-batch."""

    def __init__(self) -> None:
        super().__init__()
        self._weight = 1.0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Wrap the model once it has the parameters that are trained."""
        if "forward" not in vars(strategy):
            wrapped = data_parallel(strategy.model)
            strategy.forward = lambda: wrapped(strategy.mb_x)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put this process's share in the place of the mini-batch."""
        samples, mine = len(strategy.mb_x), share_of(len(strategy.mb_x))
        self._weight = 1.0
        if mine is not None:
            strategy.mbatch = [column[mine] for column in strategy.mbatch]
            self._weight = dist.get_world_size() * len(strategy.mb_x) / samples

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Count the share by its samples."""
        strategy.loss = strategy.loss * self._weight

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Give the strategy its own forward pass back."""
        vars(strategy).pop("forward", None)
