"""What the first experience makes of a backbone that stays from then on, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocl.config.validation import require_declared


@dataclass(frozen=True)
class Session:
    """What the first experience makes of a backbone.

    Attributes:
        adapt: what is trained, as :func:`protocl.backbones.adaptation.adapt` names it; None for all
            weights (``finetune``) where there are epochs. ``none`` uses the backbone as given.
        classifier: what it is trained under: a ``linear`` layer, or a ``cosine`` layer with a
            learned scale.
        two_branches: afterwards give the features of the backbone as it was beside those of the
            adapted one; needs a :class:`~protocl.backbones.Classifier`.
        normalize_branches: divide the features of each of both by their norm.

    Example:
        >>> Session("ssf").adaptation(epochs=5), Session().adaptation(5), Session().adaptation(0)
        ('ssf', 'finetune', 'none')
    """

    adapt: str | None = None
    classifier: Literal["linear", "cosine"] = "linear"
    two_branches: bool = False
    normalize_branches: bool = False

    def __post_init__(self) -> None:
        require_declared(self)

    def adaptation(self, epochs: int) -> str:
        """The name of the adaptation in a session of so many epochs."""
        if self.adapt is None:
            return "finetune" if epochs > 0 else "none"
        return self.adapt
