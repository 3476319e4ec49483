"""Which head classifies with a merged memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl.config.sections import HeadChoice, head
from protocl.errors import ConfigError
from protocl.federation.config import MethodInfo
from protocl.heads.ridge import Ridge


@dataclass
class HeadSettings:
    """Settings of the head that classifies; a base to be named before that of the method.

    Attributes:
        head: registered head (``protocl list heads``), and its arguments: ``method.head=lda
            method.head.shrinkage=0.1``.
    """

    info: ClassVar[MethodInfo]

    head: HeadChoice = head("nearest_mean")

    def __post_init__(self) -> None:
        """Refuse a head whose statistics depend on the order of samples.

        Raises:
            ConfigError: they do, so that those of clients do not add up.
        """
        if setting := self.head.build().ordered_by:
            raise ConfigError(
                f"method.head.{setting}={getattr(self.head, setting)} keeps what depends on the "
                f"order of samples, and does not add up over clients: leave method.head.{setting} "
                "out"
            )

    @property
    def title(self) -> str:
        """The method's name, and its head's."""
        return f"{self.info.title}, {self.head.name}"

    def require_given_strength(self) -> None:
        """Refuse a head that would choose its strength by an estimated second moment.

        Raises:
            ConfigError: it would.
        """
        wanted = self.head.build()
        if isinstance(wanted, Ridge) and wanted.regularization == "auto":
            raise ConfigError(
                "method.head.regularization=auto scores fits by exact sums, and the second moment "
                "is an estimate: use ridge with a given regularization, such as "
                "method.head.regularization=1000, or lda"
            )
