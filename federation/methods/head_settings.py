"""Which head classifies with a merged memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl.config.sections import HeadChoice, head
from protocl.federation.config import MethodInfo


@dataclass
class HeadSettings:
    """Settings of the head that classifies; a base to be named before that of the method.

    Attributes:
        head: registered head (``protocl list heads``), and its arguments: ``method.head=lda
            method.head.shrinkage=0.1``.
    """

    info: ClassVar[MethodInfo]

    head: HeadChoice = head("nearest_mean")

    @property
    def title(self) -> str:
        """The method's name, and its head's."""
        return f"{self.info.title}, {self.head.name}"
