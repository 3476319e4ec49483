"""What every adaptation can do."""

from __future__ import annotations

from torch import nn


class Adaptation:
    """A way to adapt a module; made without arguments, registered under ``protocl.adaptations``."""

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
