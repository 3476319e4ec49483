"""What every adaptation can do."""

from __future__ import annotations

from torch import nn


class Adaptation:
    """A way to adapt a module, registered under ``protocl.adaptations``.

    Arguments of its class have defaults; ``NAME:ARGUMENT=VALUE`` gives others.
    """

    def applies(self, module: nn.Module) -> bool:
        """Whether ``module`` has the layers that this adaptation changes."""
        raise NotImplementedError(f"{type(self).__name__}.applies is not defined")

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        """Change ``module`` in place.

        Returns:
            The parameters to be trained.
        """
        raise NotImplementedError(f"{type(self).__name__}.insert is not defined")

    def set_mode(self, module: nn.Module) -> None:
        """Put ``module``, which is in training mode, in the mode in which it adapts."""

    def fold(self, module: nn.Module) -> bool:
        """Put what was trained into the weights that ``module`` had, where it can be.

        Returns:
            Whether nothing that was inserted is left.
        """
        return False
