"""Where what others sent is read: whatever is wrong with it, the round goes on without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from protocl.errors import ProtoclError

logger = logging.getLogger(__name__)

_LONGEST = 500  # characters of a text that may come from the sender


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Read something in the block; what cannot be read is refused by name and left out.

    A reply may hold anything, so any error at all is taken for the fault of its sender. Errors that
    the readers do not raise on purpose are logged with their traceback at level ``DEBUG``.

    Args:
        what: is read, for the log.
    """
    try:
        yield
    except Exception as error:
        logger.warning("%s refused: %s", what, describe(error))


def describe(error: Exception) -> str:
    """An error as one short text, with its type where its text may not speak for itself."""
    if isinstance(error, ProtoclError):
        return str(error)[:_LONGEST]
    logger.debug("unforeseen", exc_info=error)
    return f"{type(error).__name__}: {error}"[:_LONGEST]
