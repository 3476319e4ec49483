"""What a model knows now, and how it came to: statistics on disk, and the changes since."""

from __future__ import annotations

import logging
import math
import threading
import time
from copy import copy
from pathlib import Path

import numpy as np

from protocl.errors import ConfigError
from protocl.memory import file as memory_file
from protocl.model.changes.change import Change, like_model, replayed, standing
from protocl.model.changes.journal import Journal, discard_journals
from protocl.model.changes.thumbnails import Thumbnails
from protocl.model.classifier import PrototypeClassifier
from protocl.model.folder import MEMORY, read_model, save_model

logger = logging.getLogger(__name__)

UNDO_SECONDS = 600.0


class Ledger:
    """A model that is read while it changes.

    Teaching is addition and forgetting subtraction: each makes a twin of what is known, changes
    it, writes the change into a journal, and puts the twin in the place of :attr:`now`. Readers
    take :attr:`now` once and see one state, whatever is written meanwhile. Changes are folded into
    the statistics when they can no longer be undone.

    For the one process that :func:`.serving` lets change the model.

    Args:
        folder: of the model.
        model, changes: as :func:`protocl.model.folder.read_model` gives them.
        undo_seconds: for how long a change can be undone.

    Attributes:
        now: what is known, as a classifier of features that is never changed.
    """

    def __init__(
        self,
        folder: Path,
        model: PrototypeClassifier,
        changes: list[Change],
        *,
        undo_seconds: float = UNDO_SECONDS,
    ) -> None:
        self.folder = folder
        self.undo_seconds = undo_seconds
        self.thumbnails = Thumbnails(folder)
        self._model = model
        self._changes = changes
        self._writing = threading.Lock()
        self._journal = Journal(folder, memory_file.identity(folder / MEMORY))
        self._journal.mend()
        discard_journals(folder, keep=self._journal)
        self.now = ready(replayed(model, changes))

    @classmethod
    def open(cls, folder: Path, *, undo_seconds: float = UNDO_SECONDS) -> Ledger:
        """The ledger of a model that learns.

        Raises:
            DataError, FingerprintError: as :func:`protocl.load_model`.
            ConfigError: it was trained otherwise, and learns no more.
        """
        model, changes = read_model(folder)
        if not isinstance(model, PrototypeClassifier):
            raise ConfigError(f"{folder} was trained otherwise, and learns no more")
        return cls(folder, model, changes, undo_seconds=undo_seconds)

    def change(self, change: Change) -> PrototypeClassifier:
        """Add or subtract samples; the change is on the disk when this returns.

        Returns:
            What is known now.

        Raises:
            ValueError, TypeError, OverflowError, KeyError: as :meth:`.Change.apply`; nothing
                changed.
            OSError: it cannot be written; nothing changed.
        """
        with self._writing:
            known = copy(self.now)
            change.apply(known)
            return self._publish(change, known)

    def undo(self, change_id: str) -> PrototypeClassifier:
        """Be as if a change had never been made.

        Returns:
            What is known now.

        Raises:
            ConfigError: it is no change of the last ten minutes, or a later one builds on it.
            OSError: as :meth:`change`.
        """
        with self._writing:
            if change_id not in {change.id for change in self._open_changes()}:
                raise ConfigError(
                    f"change {change_id!r} cannot be undone: it is none of the last "
                    f"{self.undo_seconds / 60:g} minutes, or is undone already"
                )
            undo = Change("undo", of=change_id)
            try:
                known = replayed(self._model, [*self._changes, undo])
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f"change {change_id!r} cannot be undone before a later one that builds on it: "
                    f"undo first what changed that class since ({self._later(change_id)})"
                ) from error
            self._publish(undo, known)
            self.thumbnails.undo(change_id)
            return self.now

    @property
    def forgets_classes(self) -> bool:
        """Whether whole classes can be forgotten by name."""
        return self.now.memory_.level != "shared"

    def changes(self) -> list[Change]:
        """Changes that can be undone, the last first; never waits for one that is being made."""
        return self._open_changes()[::-1]

    def fold(self, *, all_of_them: bool = False) -> bool:
        """Move changes that can no longer be undone, or all, from the journal to the statistics.

        Of what was forgotten nothing is left then: neither features, nor thumbnails, nor its name.

        Returns:
            whether there were any.

        Raises:
            OSError: the folder cannot be written; nothing changed.
        """
        with self._writing:
            until = math.inf if all_of_them else time.time() - self.undo_seconds
            ended = [change for change in self._changes if change.time <= until]
            if not ended:
                return False
            stand = standing(self._changes)
            old = [change for change in stand if change.time <= until]
            tail = [change for change in stand if change.time > until]
            self._move(old, tail)
            return True

    def forgotten_since(self) -> dict[int, float]:
        """When samples of a class were last forgotten, by class id, as far as can be undone."""
        stand = standing(self._changes)
        return {self._id_of(each): each.time for each in stand if each.kind == "forget"}

    def _move(self, old: list[Change], tail: list[Change]) -> None:
        base = like_model(replayed(self._model, old), self._model)
        save_model(base, self.folder, pending=tail)
        for change in old:
            if change.kind == "forget":
                self.thumbnails.forget(self._id_of(change), change.time)
        self._model, self._changes = base, tail
        self._journal = Journal(self.folder, memory_file.identity(self.folder / MEMORY))
        logger.info("folded %d changes into the statistics, %d can be undone", len(old), len(tail))

    def _publish(self, change: Change, known: PrototypeClassifier) -> PrototypeClassifier:
        ready(known)
        self._journal.append(change)
        self._changes = [*self._changes, change]
        self.now = known
        return known

    def _open_changes(self) -> list[Change]:
        since = time.time() - self.undo_seconds
        return [change for change in standing(self._changes) if change.time > since]

    def _later(self, change_id: str) -> str:
        """Later changes of the same class, the last first, in words."""
        since = self._open_changes()
        place = next(n for n, change in enumerate(since) if change.id == change_id)
        same = [one for one in since[place + 1 :] if one.label == since[place].label]
        return ", ".join(f"{one.kind} {one.label}, {one.id}" for one in reversed(same)) or "any"

    def _id_of(self, change: Change) -> int:
        return class_id(self._model, change.label)


def class_id(known: PrototypeClassifier, label: object) -> int:
    """The id of a label in the memory of a classifier, known to it or not."""
    from protocl.model.labels import ids_beside

    return int(ids_beside(np.array([label]), known.classes_, known.ids_)[0])


def ready(known: PrototypeClassifier) -> PrototypeClassifier:
    """A classifier of features that has computed all that its answers take: reading is pure now."""
    if len(known.classes_):
        known.guesses(np.zeros((1, known.n_features_in_)), top=1)
    return known
