"""Errors that a user can cause, each with what was expected and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ProtoclError(Exception):
    """Base of the errors that the command line reports without a traceback.

    Attributes:
        exit_code: status with which the command ``protocl`` ends.
    """

    exit_code = 1


class ConfigError(ProtoclError):
    """A configuration key, value or name that does not exist or does not fit."""

    exit_code = 2


class DataError(ProtoclError):
    """Data or weights that are absent or unreadable."""

    exit_code = 3


class FingerprintError(ProtoclError, ValueError):
    """Statistics of one feature extractor met those of another."""

    exit_code = 4


class CapacityError(ProtoclError, MemoryError):
    """Something that would not fit in memory, refused before it was allocated."""

    exit_code = 5


class AllFailedError(ProtoclError):
    """A federation in which no client ever answered with anything of use."""

    exit_code = 6


class PeerError(ProtoclError, RuntimeError):
    """Another process that works on the same thing is gone, or cannot go on."""


class DivergedError(ProtoclError, ValueError):
    """A model whose answers are no longer finite numbers."""


class ExportError(ProtoclError):
    """A module that cannot be turned into a graph."""


class NotFittedError(ProtoclError, RuntimeError):
    """A head was asked for predictions before it was fitted."""


class PrecisionWarning(UserWarning):
    """Numbers that the arithmetic at hand resolves badly, or not at all."""


class CalibrationWarning(UserWarning):
    """A threshold of few samples, or of a memory that has changed since."""


@contextmanager
def as_config_error(prefix: str = "") -> Iterator[None]:
    """Turn a ``ValueError`` in the block into a :class:`ConfigError` whose text begins so."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


@contextmanager
def writing_to(place: Path, if_not: str) -> Iterator[None]:
    """Say where the system lets nothing be written in the block: a full disk, a read-only folder.

    Args:
        place: a folder or a file.
        if_not: what is true then, and what to do.

    Raises:
        DataError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{place} cannot be written to: {error.strerror or error}; {if_not}"
        ) from error


@contextmanager
def two_samples_a_batch(setting: str) -> Iterator[None]:
    """Say of a training in the block what torch says of BatchNorm alone.

    Args:
        setting: the size of a mini-batch.

    Raises:
        ConfigError: a mini-batch of one sample came to a BatchNorm with one number a channel.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ConfigError(
            "a mini-batch of one sample, often what is left at the end of an epoch, cannot be "
            f"normalised by BatchNorm ({error}): give another {setting}, or a backbone without "
            "BatchNorm"
        ) from error
