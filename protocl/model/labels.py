"""Labels as users give them, and the class ids by which a memory knows them."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocl.memory.rows import class_id_of
from protocl.open_world.federated.provisional import require_no_prefix

Labels = NDArray[Any]
"""``(C,)`` or ``(N,)`` texts, whole numbers, or truth values; floats that scikit-learn takes for
classes count as numbers."""

_KINDS = {"U": "texts", "O": "texts", "b": "truth values", "i": "numbers", "u": "numbers"}


def as_given(labels: Any) -> Any:
    """Labels, those of a list of several types as the objects that they are.

    NumPy would make them one type: of 3 and "3" the same text.
    """
    if not isinstance(labels, list | tuple) or len({_type(label) for label in labels}) < 2:
        return labels
    objects = np.empty(len(labels), dtype=object)
    objects[:] = labels
    return objects


def _type(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    return "truth value" if isinstance(label, bool | np.bool_) else "other"


def kind_of(labels: Labels) -> str:
    """What the labels are: ``"texts"``, ``"numbers"`` or ``"truth values"``.

    Raises:
        TypeError: they are of several types, or of one that is no label.
    """
    if labels.dtype.kind == "O":
        strange = {type(label).__name__ for label in labels.tolist() if not isinstance(label, str)}
        if strange:
            raise TypeError(
                f"Unknown label type: y holds objects of type {', '.join(sorted(strange))}, "
                "expected labels of one type: texts, whole numbers or truth values"
            )
    if labels.dtype.kind == "f":
        return "numbers"
    if labels.dtype.kind not in _KINDS:
        raise TypeError(
            f"Unknown label type: y has dtype {labels.dtype}, expected texts, whole numbers or "
            "truth values"
        )
    return _KINDS[labels.dtype.kind]


def ids_of(labels: Labels) -> NDArray[np.int64]:
    """Class ids ``(C,)`` of labels ``(C,)``, the same wherever and whenever they are made.

    Whole numbers from 0 on are their own ids; others, and texts, are known by a digest.

    Raises:
        ValueError: a text begins as the names of rows without a name of their own do.
    """
    return np.array([_id_of(label) for label in labels.tolist()], dtype=np.int64)


def ids_beside(labels: Labels, known: Labels, known_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class ids ``(C,)`` of labels: those that known ones have, else those of :func:`ids_of`."""
    given = dict(zip(known.tolist(), known_ids.tolist(), strict=True))
    ids = [given[label] if label in given else _id_of(label) for label in labels.tolist()]
    return np.array(ids, dtype=np.int64)


def named(known: Labels, name: str) -> Any:
    """The label that a name means, as a person types it, beside those ``known`` ``(C,)``.

    Raises:
        ValueError: those known are numbers, and it is none.
    """
    if not len(known) or known.dtype.kind == "U":
        # Some systems write the names of folders decomposed: the same word is the same class.
        return name if name in known.tolist() else unicodedata.normalize("NFC", name)
    words = {str(label): label for label in known.tolist()}
    try:
        return words[name] if name in words else int(name)
    except ValueError as error:
        raise ValueError(
            f"{name}: the classes of this model are numbers, such as {known[0]}"
        ) from error


def _id_of(label: str | float | bool) -> int:
    if isinstance(label, str):
        require_no_prefix(label)
        try:
            return class_id_of(label)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"label {label!r} is no Unicode text, perhaps a file name of another encoding: "
                "rename it"
            ) from error
    whole = int(label)  # scikit-learn takes floats for classes where they are whole
    return whole if whole >= 0 else class_id_of(str(whole))


def like(labels: Labels, known: Labels) -> Labels:
    """Labels in the type of those that are ``known``, of which there may be none.

    Raises:
        TypeError: they are of another kind.
        ValueError: a number does not fit the type, or is 2^63 or more.
    """
    found = kind_of(labels)
    if found == "numbers" and (labels >= 2.0**63).any():
        raise ValueError("y holds a label of 2^63 or more: expected numbers below")
    if not len(known):
        return labels
    if found != kind_of(known):
        raise TypeError(
            f"labels are {found}, those learned before are {kind_of(known)}: expected one kind"
        )
    if found != "numbers":
        return labels
    cast = labels.astype(known.dtype)
    if (cast.astype(labels.dtype) != labels).any() or (cast < 0).any() != (labels < 0).any():
        raise ValueError(
            f"labels of type {labels.dtype} do not fit {known.dtype}, the type of those learned "
            "before"
        )
    return cast
