"""Weights & Biases: a run in the project of its name, in a folder until it is synchronised."""

from __future__ import annotations

import hashlib
import os

import wandb

from protocl.trackers.base import Place, Tracker

_STEP = "step"


class WandB(Tracker):
    """Weights & Biases: offline in the folder of the run, unless WANDB_MODE or a key is set."""

    def __init__(self, place: Place) -> None:
        online = "WANDB_API_KEY" in os.environ
        digest = hashlib.sha256(str(place.folder.resolve()).encode()).hexdigest()
        self.run = wandb.init(
            project=place.name.replace("/", "-"),
            name=place.folder.name,
            id=digest[:16],
            resume="allow",
            dir=str(place.folder),
            config=dict(place.settings),
            mode=os.environ.get("WANDB_MODE", "online" if online else "offline"),  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._known: set[str] = set()

    def log(self, name: str, value: float, step: int) -> None:
        """See :meth:`.Tracker.log`."""
        if name not in self._known:
            # What is counted differs from name to name, and may begin anew.
            self.run.define_metric(name, step_metric=f"{name}/{_STEP}")
            self._known.add(name)
        self.run.log({name: value, f"{name}/{_STEP}": step})

    def close(self, *, failed: bool) -> None:
        """See :meth:`.Tracker.close`."""
        self.run.finish(exit_code=int(failed))
