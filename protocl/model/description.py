"""What ``model.json`` says: which backbone and head a model has, and their settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, ValidationError

from protocl.errors import DataError
from protocl.heads.written_settings import plain
from protocl.model.kept_backbone import KeptBackbone, of_a_sample
from protocl.registry import Registry

FORMAT = "protocl-model"
FORMAT_VERSION = 1
DESCRIPTION = "model.json"


class Named(BaseModel):
    """A registered part and its settings."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str
    settings: dict[str, Any]


class Description(BaseModel):
    """The content of ``model.json``.

    Attributes:
        head: what answers from the memory; None beside an ``answer``.
        answer: what answers without one.
        backbone: None where samples are features.
        shape: of one sample, ``(C, H, W)`` or ``(D,)``; None where samples are features.
        batch_size: of the encoder.
        versions: of what wrote it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["protocl-model"] = "protocl-model"
    format_version: Literal[1] = 1
    head: Named | None = None
    answer: Named | None = None
    backbone: KeptBackbone | None = None
    shape: Annotated[list[PositiveInt], AfterValidator(of_a_sample)] | None = None
    batch_size: PositiveInt | None = None
    versions: dict[str, str]


def read_description(folder: Path) -> Description:
    """The content of ``model.json``.

    Raises:
        DataError: the folder is no model, or damaged.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise DataError(f"{folder} is no model: it has no {DESCRIPTION}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; restore it from a copy") from error
    version = content.get("format_version")
    if content.get("format") != FORMAT or version != FORMAT_VERSION:
        raise DataError(
            f"{file} has format {content.get('format')!r} {version!r}, this protocl reads "
            f"{FORMAT!r} {FORMAT_VERSION}; upgrade protocl"
        )
    if checksum != checksum_of(content):
        raise DataError(f"{file} is damaged: its checksum is not that of its contents")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{file} is damaged: {error}") from error


def named(registry: Registry, part: Any, settings: dict[str, Any]) -> Named:
    """What a description says of a registered part.

    Raises:
        ValueError: it is not registered.
    """
    name = registry.name_of(type(part))
    if name is None:
        raise ValueError(
            f"{type(part).__name__} is not registered under {registry.group}, so that a model "
            "cannot name it: declare it as an entry point of your package"
        )
    return Named(name=name, settings={key: plain(key, value) for key, value in settings.items()})


def checksum_of(content: dict[str, Any]) -> str:
    """SHA-256 over a description, which stands beside it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
