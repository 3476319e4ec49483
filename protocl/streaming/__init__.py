"""Models from data that do not fit in memory (``protocl stream``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.streaming.run import stream
    from protocl.streaming.settings import StreamConfig

__all__ = ["StreamConfig", "stream"]

_HOMES = {"StreamConfig": "settings", "stream": "run"}

__getattr__ = importer(__name__, _HOMES)
