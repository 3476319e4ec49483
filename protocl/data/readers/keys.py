"""Under which names archives and tables keep samples, labels and parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from protocl.errors import DataError

SAMPLES = ("x", "data", "images", "image", "features", "samples", "inputs", "embeddings")
LABELS = ("y", "labels", "label", "targets", "target", "classes", "fine_labels")
NAMES = ("classes", "class_names", "label_names", "names")
TRAIN = ("train", "training", "tr")
TEST = ("test", "testing", "te")
VALIDATION = ("val", "valid", "validation", "dev")


class Pair(NamedTuple):
    """The keys of samples and of their labels."""

    x: str
    y: str


def usual_pairs(keys: Iterable[str]) -> dict[str, Pair]:
    """Which keys hold what, by part: ``train`` and ``test``, or ``all`` for a single pair.

    ``validation`` stands in where there is no ``test``; beside one it is left aside.

    Args:
        keys: of an archive: ``x_train``, ``train_images``, ``X``, ...

    Raises:
        DataError: two keys would be the same, or one is without its fellow.

    >>> usual_pairs(["train_images", "train_labels", "val_images", "val_labels"])["test"]
    Pair(x='val_images', y='val_labels')
    """
    roles: dict[tuple[str, str], str] = {}
    for key in keys:
        role = _role(key)
        if role in roles:
            raise DataError(f"'{roles[role]}' and '{key}' mean the same; keep one of the two")
        if role is not None:
            roles[role] = key
    for (part, content), key in roles.items():
        other = "y" if content == "x" else "x"
        if part != "all" and (part, other) not in roles:
            raise DataError(
                f"'{key}' has no '{other}_{part}' beside it; expected x_train, y_train, x_test, "
                "y_test or other usual names"
            )
    found = {
        part: Pair(roles[part, "x"], roles[part, "y"])
        for part in ("train", "test", "validation", "all")
        if (part, "x") in roles and (part, "y") in roles
    }
    if "train" in found:
        test = found.get("test", found.get("validation"))
        return {"train": found["train"]} | ({} if test is None else {"test": test})
    return {"all": found["all"]} if "all" in found else {}


def names_key(keys: Iterable[str], taken: Iterable[str]) -> str | None:
    """The key of the names of classes, if there is one besides those ``taken``."""
    return next((key for key in keys if key.lower() in NAMES and key not in taken), None)


def part_named(word: str) -> str | None:
    """``train``, ``test`` or ``validation``, for what a table or an archive calls it."""
    return _PARTS.get(word.strip().lower())


_PARTS: Mapping[str, str] = {
    **dict.fromkeys(TRAIN, "train"),
    **dict.fromkeys(TEST, "test"),
    **dict.fromkeys(VALIDATION, "validation"),
}


def _role(key: str) -> tuple[str, str] | None:
    """Part and content of a key such as ``x_train``; None where it is another's."""
    words = key.lower().split("_")
    for part, content in (
        (part_named(words[-1]), "_".join(words[:-1])),
        (part_named(words[0]), "_".join(words[1:])),
        ("all", key.lower()),
    ):
        if part is not None and content in SAMPLES:
            return part, "x"
        if part is not None and content in LABELS and (part, content) != ("all", "classes"):
            return part, "y"
    return None
