"""Which head classifies with a merged memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from protocl.errors import ConfigError
from protocl.federation.config import MethodInfo
from protocl.heads.base import Head
from protocl.registry import HEADS


@dataclass
class HeadSettings:
    """Settings of the head that classifies; a base to be named before that of the method.

    Attributes:
        head: registered head (``protocl list heads``).
        head_options: its arguments, such as ``{shrinkage: 0.1}``.
    """

    info: ClassVar[MethodInfo]

    head: str = "nearest_mean"
    head_options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The method's name, and its head's."""
        return f"{self.info.title}, {self.head}"

    def build_head(self) -> Head:
        """The head that classifies.

        Raises:
            ConfigError: its name or an option is wrong.
        """
        try:
            head: Head = HEADS.get(self.head)(**self.head_options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"method.head_options={self.head_options}: {error}") from error
        return head
