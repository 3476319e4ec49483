"""Small pictures of what a model was taught, where its owner allows them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from protocl.io.atomic import atomic_write
from protocl.model.changes.change import Change

FOLDER = "thumbnails"
_NAME = re.compile(r"\d{17}-[0-9a-f]{16}-\d\.jpg")
_MOST = 5
"""Pictures of one change."""


class Thumbnails:
    """Files ``thumbnails/CLASS_ID/TIME-CHANGE-N.jpg`` in the folder of a model.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / FOLDER

    def add(self, class_id: int, change: Change, pictures: list[bytes]) -> None:
        """Keep pictures of samples that a change taught."""
        for n, picture in enumerate(pictures[:_MOST]):
            name = f"{_stamp(change.time)}-{change.id}-{n}.jpg"
            atomic_write(self.root / str(class_id) / name, picture)

    def newest(self, class_id: int, after: float = 0.0) -> Path | None:
        """The last picture of a class that was taught later than ``after``, or None."""
        names = sorted(path.name for path in (self.root / str(class_id)).glob("*.jpg"))
        if not names or names[-1].split("-")[0] <= _stamp(after):
            return None
        return self.root / str(class_id) / names[-1]

    def file(self, class_id: int, name: str) -> Path | None:
        """The picture of that name, or None; no name leads out of the folder."""
        if not _NAME.fullmatch(name):
            return None
        found = self.root / str(class_id) / name
        return found if found.is_file() else None

    def undo(self, change_id: str) -> None:
        """Remove the pictures of one change."""
        for path in self.root.glob(f"*/*-{change_id}-*.jpg"):
            path.unlink(missing_ok=True)

    def forget(self, class_id: int, until: float = float("inf")) -> None:
        """Remove the pictures of a class that were taught until a time."""
        for path in (self.root / str(class_id)).glob("*.jpg"):
            if until == float("inf") or path.name.split("-")[0] <= _stamp(until):
                path.unlink(missing_ok=True)
        self._tidy()

    def keep(self, class_ids: Collection[int]) -> None:
        """Remove the pictures of all classes but these."""
        kept = {str(class_id) for class_id in class_ids}
        for place in self.root.glob("*"):
            if place.name not in kept:
                shutil.rmtree(place)
        self._tidy()

    def _tidy(self) -> None:
        """Remove folders without pictures, so that nothing tells of what was there."""
        for place in [*self.root.glob("*"), self.root]:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _stamp(time: float) -> str:
    """A time as a name that sorts by it."""
    return f"{round(1e6 * time):017d}"
