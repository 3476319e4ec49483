"""What is served: an encoder, what the model knows now, and what may be shown of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from protocl.errors import ConfigError, DataError
from protocl.model.changes.change import Change
from protocl.model.changes.ledger import Ledger, class_id
from protocl.model.classifier import PrototypeClassifier
from protocl.model.encoder import Encoder
from protocl.model.folder import read_model
from protocl.model.guesses import Guesses
from protocl.model.trained import TrainedClassifier
from protocl.open_world.explanation.explanation import Explanation
from protocl.serve.pictures import thumbnail
from protocl.serve.problems import Problem

logger = logging.getLogger(__name__)

Learner = PrototypeClassifier | TrainedClassifier
Samples = Sequence[Image] | np.ndarray[Any, Any]
NEAREST = 5
HALF = 0.5


@dataclass(frozen=True)
class Neighbouring:
    """A prototype near a sample: its class, distance, samples, and a picture of it."""

    label: Any
    distance: float
    samples: int
    thumbnail: str | None


class State:
    """What is known at a moment; it does not change.

    Args:
        known: a classifier of features.

    Attributes:
        means: ``(C, W)`` the prototypes under the head's map, in the order of ids; None where a
            model keeps none.
    """

    def __init__(self, known: Learner) -> None:
        self.known = known
        memory = known.memory_ if isinstance(known, PrototypeClassifier) else None
        self.means = None if memory is None or not len(memory) else memory.means.double()
        self.counts = {} if memory is None else dict(
            zip(memory.classes.tolist(), memory.counts.tolist(), strict=True)
        )  # fmt: skip

    @property
    def samples(self) -> int | None:
        """Samples known; None where a model counts none."""
        return sum(self.counts.values()) if isinstance(self.known, PrototypeClassifier) else None

    def require_classes(self) -> None:
        """Refuse to answer where nothing is known.

        Raises:
            ConfigError: no class is.
        """
        if not len(self.known.classes_):
            raise ConfigError("no class is known yet: teach one first, by POST /teach or the page")

    def distances(self, features: Tensor) -> list[list[tuple[Any, int, float]]]:
        """Labels, ids and distances of the nearest prototypes of each sample ``(N, D)``."""
        if self.means is None or not isinstance(self.known, PrototypeClassifier):
            return [[] for _ in features]
        mapped = self.known.memory_.feature_map(features).double()
        found, columns = torch.cdist(mapped, self.means).topk(
            min(NEAREST, len(self.means)), largest=False
        )
        ids = self.known.memory_.classes[columns]
        names = dict(zip(self.known.ids_.tolist(), self.known.classes_.tolist(), strict=True))
        return [
            [(names[i], i, d) for i, d in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(ids.tolist(), found.tolist(), strict=True)
        ]


class Service:
    """A model that answers, and learns where it can.

    Args:
        folder: of the model, which is this process's to change.
        undo_seconds: for how long a change can be undone.
        thumbnails: whether small pictures of what is taught are kept, and shown.
        unknown: from which on a sample is marked as unknown, by what the model tells it; None for
            never; ``"auto"`` for a probability of a half, or for what a score is calibrated to
            keep.

    Attributes:
        name: of the folder.
        state: what is known now.
        ledger: how it changes; None for a model that learns no more.

    Raises:
        DataError, FingerprintError: as :func:`protocl.load_model`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        undo_seconds: float = 600.0,
        thumbnails: bool = False,
        unknown: float | Literal["auto"] | None = "auto",
    ) -> None:
        model, changes = read_model(folder)
        self.encoder: Encoder | None = getattr(model, "encoder_", None)
        self.name = folder.resolve().name
        self.shows_thumbnails = thumbnails
        self._unknown = unknown
        self.ledger: Ledger | None = None
        if isinstance(model, PrototypeClassifier):
            self.ledger = Ledger(folder, model, changes, undo_seconds=undo_seconds)
            self.state = State(self.ledger.now)
        else:
            self.state = State(TrainedClassifier(model.answer, model.labels, None))

    # -- reading: any number of threads -------------------------------------------------------

    @property
    def takes_pictures(self) -> bool:
        """Whether samples are pictures, rather than vectors."""
        return self.encoder is not None and len(self.encoder.shape or (3, 0, 0)) == 3

    @property
    def width(self) -> int | None:
        """Numbers of a vector that is a sample."""
        if self.takes_pictures:
            return None
        if self.encoder is not None and self.encoder.shape is not None:
            return self.encoder.shape[0]
        known = self.state.known
        return known.n_features_in_ if isinstance(known, PrototypeClassifier) else None

    def features(self, samples: Samples) -> Tensor:
        """Features ``(N, D)`` of pictures, or of vectors.

        Raises:
            DataError, ValueError: they are not such as the model takes.
        """
        pictures = not isinstance(samples, np.ndarray)
        if pictures != self.takes_pictures:
            wanted = "pictures as files" if self.takes_pictures else "vectors as JSON, features"
            raise DataError(f"this model takes {wanted}: see GET /classes and GET /openapi.json")
        if self.encoder is None:
            return torch.as_tensor(samples)
        return self.encoder(samples)

    def predict(self, samples: Samples, top: int) -> tuple[list[Guesses], list[list[Neighbouring]]]:
        """The best classes of each sample, and the nearest prototypes.

        Raises:
            ConfigError: no class is known.
            DataError, ValueError: as :meth:`features`.
        """
        state = self.state
        state.require_classes()
        features = self.features(samples)
        given: Any = features.numpy() if self.ledger is not None else features
        return state.known.guesses(given, top), self._nearest(state, features)

    def explain(self, samples: Samples, top: int) -> list[Explanation]:
        """Why each sample is answered so.

        Raises:
            ConfigError: no class is known, or the model keeps no prototypes.
            DataError, ValueError: as :meth:`features`.
        """
        known = self.state.known
        self.state.require_classes()
        if not isinstance(known, PrototypeClassifier):
            raise ConfigError(
                "this model was trained otherwise and keeps no prototypes to explain by"
            )
        return known.explain(self.features(samples).numpy(), top)

    @property
    def threshold(self) -> float | None:
        """From which on a sample is marked as unknown; None for never."""
        if self._unknown != "auto":
            return self._unknown
        known = self.state.known
        if isinstance(known, TrainedClassifier) or known.unknown_score is None:
            return HALF
        return None if known.calibration_ is None else known.calibration_.keep

    def marked(self, guesses: Guesses) -> bool:
        """Whether a sample counts as unknown."""
        if self._unknown == "auto" and guesses.verdict is not None:
            return bool(guesses.verdict.is_unknown)
        threshold, unknown = self.threshold, guesses.unknown
        return threshold is not None and unknown is not None and unknown >= threshold

    def _nearest(self, state: State, features: Tensor) -> list[list[Neighbouring]]:
        since = self.ledger.forgotten_since() if self.ledger and self.shows_thumbnails else {}
        return [
            [
                Neighbouring(label, d, state.counts[i], self._thumbnail(i, since.get(i, 0.0)))
                for label, i, d in row
            ]
            for row in state.distances(features)
        ]

    def _thumbnail(self, id_: int, since: float) -> str | None:
        if not self.shows_thumbnails or self.ledger is None:
            return None
        file = self.ledger.thumbnails.newest(id_, since)
        return None if file is None else f"thumbnails/{id_}/{file.name}"

    # -- writing: one thread ------------------------------------------------------------------

    def require_learner(self) -> Ledger:
        """The ledger.

        Raises:
            ConfigError: the model learns no more.
        """
        if self.ledger is None:
            raise ConfigError(
                "this model was trained otherwise and keeps no statistics, so that it can neither "
                "be taught nor forget; a model of nearest_mean, slda, ridge and others can"
            )
        return self.ledger

    def teach(self, label: Any, features: Tensor, pictures: Samples) -> Change:
        """Add samples to what is known of a class."""
        ledger = self.require_learner()
        change = Change("teach", label, features.numpy())
        self._change(ledger, change)
        if self.shows_thumbnails and not isinstance(pictures, np.ndarray):
            small = [thumbnail(picture) for picture in pictures]
            ledger.thumbnails.add(class_id(ledger.now, label), change, small)
        return change

    def forget(self, label: Any, features: Tensor | None, *, now: bool) -> Change:
        """Subtract samples of a class, or all of it; ``now``: and leave no way back.

        With ``now`` no change before it can be undone any more either.
        """
        ledger = self.require_learner()
        change = Change("forget", label, None if features is None else features.numpy())
        self._change(ledger, change)
        if now:
            _fold(ledger)
        return change

    def undo(self, change_id: str) -> None:
        """Be as if a change had never been made."""
        self.state = State(self.require_learner().undo(change_id))

    def _change(self, ledger: Ledger, change: Change) -> None:
        self.state = State(ledger.change(change))


def _fold(ledger: Ledger) -> None:
    """Leave nothing of what was forgotten.

    Raises:
        Problem: the folder cannot be written, so that what was forgotten can still be undone.
    """
    try:
        ledger.fold(all_of_them=True)
    except OSError as error:
        raise Problem(
            507, "not_folded",
            f"it is forgotten, but not for good: the folder cannot be written ({error}), and the "
            "journal still holds it; make room, and forget anything with now=true",
        ) from error  # fmt: skip
