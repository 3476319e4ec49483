"""The JSON of answers, as the OpenAPI description has it."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel

Label: TypeAlias = str | bool | int | float


class ClassGuess(BaseModel):
    """A class that a sample may belong to.

    Attributes:
        label: its name.
        score: what the head gives it; the larger, the nearer.
        probability: calibrated; null where nothing tells how sure the head is.
    """

    label: Label
    score: float
    probability: float | None


class Neighbour(BaseModel):
    """A stored prototype: the mean of a class.

    Attributes:
        label: the name of the class.
        distance: Euclidean, of the sample's features under the head's map.
        samples: of which it is the mean.
        thumbnail: address of a picture that was taught, where the owner allows it.
    """

    label: Label
    distance: float
    samples: int
    thumbnail: str | None


class UnknownBy(BaseModel):
    """The score by which a sample counts as unknown or not.

    Attributes:
        score: its name.
        value: what it gives the sample, high for known; null where the model keeps too little.
        is_unknown: by its calibration; null where there is none.
        note: what is wrong with the calibration, and what to do; empty if nothing is.
    """

    score: str
    value: float | None
    is_unknown: bool | None
    note: str


class Prediction(BaseModel):
    """What the model makes of a sample.

    Attributes:
        name: of its file, or its number.
        label: the best class.
        is_unknown: ``unknown`` is at least the threshold of the server.
        unknown: probability that it belongs to none of those known, or, by a score, the share of
            known samples that score higher; null where nothing tells.
        unknown_by: the score; null where it is a probability.
        best: the best classes, the best first.
        nearest: the nearest prototypes, the nearest first.
    """

    name: str
    label: Label
    is_unknown: bool
    unknown: float | None
    unknown_by: UnknownBy | None
    best: list[ClassGuess]
    nearest: list[Neighbour]


class Reason(BaseModel):
    """A class whose prototype took part in a decision.

    Attributes:
        label: its name.
        share: of the decision, the calibrated probability; null where nothing tells how sure the
            head is.
        behind: by how much its score is below the best.
        distance: Euclidean, of the sample's features under the head's map.
        samples: of which the prototype is the mean.
    """

    label: Label
    share: float | None
    behind: float
    distance: float
    samples: int


class Explained(BaseModel):
    """Why a sample is answered so.

    Attributes:
        name: of its file, or its number.
        prototypes: that weigh most, the answer first.
        total: entropy of the answer in nats; null where nothing tells.
        aleatoric: the part that remains however many samples are taught: classes overlap.
        epistemic: the part that more samples would take away.
        unknown, unknown_by: see :class:`Prediction`.
    """

    name: str
    prototypes: list[Reason]
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    unknown: float | None
    unknown_by: UnknownBy | None


class Explanations(BaseModel):
    """The answer of ``POST /explain``, one explanation a sample, in their order."""

    explanations: list[Explained]


class Predictions(BaseModel):
    """The answer of ``POST /predict``, one prediction a sample, in their order."""

    predictions: list[Prediction]


class Changed(BaseModel):
    """The answer of a change, which is on the disk.

    Attributes:
        change: its id, for ``POST /undo``; null where it cannot be undone.
        classes: known now.
        samples: known now.
        undo_seconds: for how long it can be undone.
    """

    change: str | None
    classes: int
    samples: int
    undo_seconds: float


class OpenChange(BaseModel):
    """A change that can be undone.

    Attributes:
        id: for ``POST /undo``.
        kind: ``teach`` or ``forget``.
        label: the class.
        samples: how many; null for a whole class.
        seconds_left: until it can no longer be undone.
    """

    id: str
    kind: str
    label: Label
    samples: int | None
    seconds_left: float


class OpenChanges(BaseModel):
    """The answer of ``GET /changes``, the last first."""

    changes: list[OpenChange]


class KnownClass(BaseModel):
    """A class and its number of samples; null where the model keeps none."""

    label: Label
    samples: int | None


class Known(BaseModel):
    """The answer of ``GET /classes``.

    Attributes:
        name: of the folder of the model.
        takes: ``pictures`` or ``features``.
        width: numbers of a vector, where it takes features.
        learns: whether it can be taught.
        forgets_classes: whether it can forget whole classes, and not only samples.
        unknown_threshold: from which on a sample is marked; null where none is.
        unknown_by: the score that tells it; null where it is a probability.
        unknown_note: what is wrong with its calibration, and what to do; empty if nothing is.
        classes: sorted.
    """

    name: str
    takes: str
    width: int | None
    learns: bool
    forgets_classes: bool
    unknown_threshold: float | None
    unknown_by: str | None
    unknown_note: str
    classes: list[KnownClass]


class Health(BaseModel):
    """The answer of ``GET /health``."""

    status: str
    classes: int
    samples: int | None


class Refusal(BaseModel):
    """The answer of a request that is refused: a word for programs, and what to do."""

    error: str
    message: str
