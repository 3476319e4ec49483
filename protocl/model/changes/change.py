"""One change of what a model knows: teaching adds samples, forgetting subtracts them."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time as clock
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier

Kind = Literal["teach", "forget", "undo"]
_DTYPES = ("float32", "float64")


def _new_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to the statistics of a model, or taken away.

    Attributes:
        kind: ``"teach"`` adds, ``"forget"`` subtracts, ``"undo"`` strikes another change.
        label: of the class; None for ``"undo"``.
        features: ``(N, D)`` of the samples; None for a whole class that is forgotten.
        of: id of the change that is undone.
        id: 16 hexadecimal digits.
        time: seconds since 1970 at which it was made.
    """

    kind: Kind
    label: Any = None
    features: NDArray[Any] | None = None
    of: str | None = None
    id: str = field(default_factory=_new_id)
    time: float = field(default_factory=clock.time)

    def apply(self, known: PrototypeClassifier) -> None:
        """Add to what a classifier of features knows, or subtract from it.

        Raises:
            ValueError, TypeError, OverflowError: the samples do not fit, or were never added.
            KeyError: the class is not known.
        """
        if self.kind == "forget" and self.features is None:
            known.forget(classes=[self.label])
        elif self.features is not None:
            labels = [self.label] * len(self.features)
            step = known.partial_fit if self.kind == "teach" else known.forget
            step(self.features, labels)

    def line(self) -> bytes:
        """As it is written: a digest, and JSON after it."""
        content = asdict(self) | {"features": _written(self.features)}
        text = json.dumps(content).encode()
        return _digest(text) + b" " + text + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Change:
        """The change that :meth:`line` wrote.

        Raises:
            ValueError: a bit has changed, or it is none.
        """
        digest, _, text = line.rstrip(b"\n").partition(b" ")
        if digest != _digest(text):
            raise ValueError("its digest is not that of its text")
        content = json.loads(text)
        return cls(**content | {"features": _restored(content["features"])})


def standing(changes: Iterable[Change]) -> list[Change]:
    """The changes that no later one undoes, in their order."""
    changes = list(changes)
    struck = {change.of for change in changes if change.kind == "undo"}
    return [each for each in changes if each.kind != "undo" and each.id not in struck]


def replayed(base: PrototypeClassifier, changes: Sequence[Change]) -> PrototypeClassifier:
    """A classifier of features that knows what ``base`` would after the changes that stand.

    It is the same to the last bit whenever it is computed, and as if those undone had never been.
    """
    known = of_features(base)
    for change in standing(changes):
        change.apply(known)
    return known


def of_features(model: PrototypeClassifier) -> PrototypeClassifier:
    """A twin that takes the features of samples in their place."""
    twin = copy(model)
    twin.backbone = None
    twin.__dict__.pop("encoder_", None)
    return twin


def like_model(known: PrototypeClassifier, model: PrototypeClassifier) -> PrototypeClassifier:
    """What ``known`` knows, taking samples as ``model`` takes them."""
    twin = copy(known)
    twin.backbone = model.backbone
    if hasattr(model, "encoder_"):
        twin.encoder_ = model.encoder_
    return twin


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:32].encode()


def _written(features: NDArray[Any] | None) -> dict[str, Any] | None:
    if features is None:
        return None
    little = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
    return {
        "dtype": features.dtype.name,
        "shape": list(features.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def _restored(written: dict[str, Any] | None) -> NDArray[Any] | None:
    if written is None:
        return None
    if written["dtype"] not in _DTYPES:
        raise ValueError(f"features of {written['dtype']}: expected {' or '.join(_DTYPES)}")
    little = np.dtype(written["dtype"]).newbyteorder("<")
    flat = np.frombuffer(base64.b64decode(written["base64"], validate=True), little)
    return flat.astype(written["dtype"]).reshape(written["shape"])
