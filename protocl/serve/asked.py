"""What a request asks, out of its form or its JSON."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from protocl.model.labels import Labels, named
from protocl.serve.pictures import MOST_BYTES, picture_of
from protocl.serve.problems import Problem
from protocl.serve.service import Samples

MOST_SAMPLES = 64
"""Pictures of a request."""
MOST_VECTORS = 1000
MOST_JSON = 20_000_000
MOST_NAME = 1000
PATIENCE = 60.0
"""Seconds that a request may take to arrive."""


@dataclass
class Asked:
    """The content of a request.

    Attributes:
        values: the fields of its form, or of its JSON.
        files: names and bytes of its pictures.
    """

    values: dict[str, Any]
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def samples(self) -> tuple[list[str], Samples]:
        """Names and samples: pictures decoded, or vectors ``(N, D)``.

        Raises:
            Problem: there are none, too many, or one is damaged.
        """
        if self.files:
            return [name for name, _ in self.files], [picture_of(c, n) for n, c in self.files]
        if self.values.get("features") is None:
            raise Problem(
                422, "no_samples",
                "no samples: send pictures as files of a form, curl -F files=@photo.jpg, or for a "
                'model of features JSON such as {"features": [[0.1, 0.2]]}',
            )  # fmt: skip
        vectors = _vectors(self.values["features"])
        return [str(n) for n in range(len(vectors))], vectors

    @property
    def has_samples(self) -> bool:
        """Whether it brings any."""
        return bool(self.files) or self.values.get("features") is not None

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 on.

        Raises:
            Problem: it is none.
        """
        value = str(self.values.get(name, default))
        if not value.isdecimal() or not 1 <= int(value[:9]) <= most:
            raise Problem(
                422, "bad_value", f"{name}={value[:50]!r}: expected a whole number from 1 to {most}"
            )
        return int(value)

    def flag(self, name: str) -> bool:
        """Whether something is asked for.

        Raises:
            Problem: it is neither true nor false.
        """
        value = self.values.get(name, False)
        if str(value).lower() not in ("true", "false"):
            raise Problem(422, "bad_value", f"{name}={value!r}: expected true or false")
        return str(value).lower() == "true"

    def text(self, name: str) -> str:
        """A text that must be there.

        Raises:
            Problem: it is not.
        """
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise Problem(422, "bad_value", f"{name} is missing: expected a text")
        return value

    def label(self, known: Labels) -> Any:
        """The class that is meant, beside those ``known``.

        Raises:
            Problem: it is missing, or no name of a class.
        """
        label = self.values.get("class")
        if isinstance(label, bool | int):
            return label
        if not isinstance(label, str) or not label.strip():
            raise Problem(422, "bad_class", "class is missing: expected the name of a class")
        if label not in known.tolist():
            label = label.strip()
            _require_name(label)
        try:
            return named(known, label)
        except ValueError as error:
            raise Problem(422, "bad_class", str(error)) from error


async def asked(request: Request) -> Asked:
    """What a request asks.

    Raises:
        Problem: it is neither a form nor JSON, too large, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(PATIENCE):
            if kind == "application/json":
                return Asked(_object(await request.body()))
            if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                return await _form(request)
    except TimeoutError as error:
        raise Problem(
            408, "too_slow", f"the request took longer than {PATIENCE:g} s to arrive"
        ) from error
    except ClientDisconnect as error:
        raise Problem(400, "broken_off", "the request broke off before its end") from error
    raise Problem(
        415, "unknown_content",
        f"Content-Type {kind!r}: expected multipart/form-data (curl -F files=@photo.jpg) or "
        "application/json",
    )  # fmt: skip


async def _form(request: Request) -> Asked:
    try:
        async with request.form(max_files=MOST_SAMPLES, max_fields=20) as form:
            texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            return Asked(_once(texts), await _files(form))
    except (HTTPException, FormParserError) as error:
        reason = error.detail if isinstance(error, HTTPException) else error
        raise Problem(
            400, "bad_form",
            f"{reason}: expected a form of at most {MOST_SAMPLES} files and the fields "
            "class, top and now",
        ) from error  # fmt: skip


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields by name, of which none may come twice: nobody could tell which one is meant."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in values:
            raise Problem(422, "bad_value", f"{name} is given more than once: expected it once")
        values[name] = value
    return values


async def _files(form: FormData) -> list[tuple[str, bytes]]:
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    # One byte more than allowed tells that it is too many.
    return [
        (file.filename or f"file {n}", await file.read(MOST_BYTES + 1))
        for n, file in enumerate(files, start=1)
    ]


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > MOST_JSON:
        raise Problem(
            413, "request_too_large", f"JSON has at most {MOST_JSON / 1e6:.0f} MB: send less"
        )
    try:
        values = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", f"the request is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise Problem(400, "bad_json", 'expected a JSON object, such as {"features": [[0.1]]}')
    return values


def _vectors(given: Any) -> NDArray[np.float64]:
    try:
        vectors = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(
            422, "bad_features", f"features are no rows of numbers of one length: {error}"
        ) from error
    vectors = vectors[None] if vectors.ndim == 1 and len(vectors) else vectors
    if vectors.ndim != 2 or not vectors.size or len(vectors) > MOST_VECTORS:
        raise Problem(
            422, "bad_features",
            f"features have shape {vectors.shape}: expected 1 to {MOST_VECTORS} rows of numbers",
        )  # fmt: skip
    return vectors


def _require_name(name: str) -> None:
    """Refuse what cannot be shown, or not be written down."""
    if len(name) > MOST_NAME:
        raise Problem(
            422, "bad_class", f"class has {len(name)} characters: expected at most {MOST_NAME}"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise Problem(422, "bad_class", f"class {name!r} has control characters: leave them out")
