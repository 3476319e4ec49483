"""Start each experience with a fresh optimizer, later ones at another learning rate."""

from __future__ import annotations

from typing import Any

from avalanche.core import SupervisedPlugin


class Restarts(SupervisedPlugin[Any]):
    """Forget the optimizer's moments with each experience, and change its rate after the first.

    Args:
        later_lr_factor: later experiences begin at this multiple of the first one's rates.
    """

    def __init__(self, later_lr_factor: float = 1.0) -> None:
        super().__init__()
        if not later_lr_factor > 0:
            raise ValueError(f"later_lr_factor={later_lr_factor}: expected a number > 0")
        self.later_lr_factor = later_lr_factor
        self._experiences = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.optimizer.state.clear()
        if self._experiences == 1:
            for group in strategy.optimizer.param_groups:
                group["lr"] *= self.later_lr_factor
        self._experiences += 1
