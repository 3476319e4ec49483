"""MLflow: a run in the experiment of its name, on a server or in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from protocl.io.atomic import locked
from protocl.trackers.base import Place, Tracker

_AT_ONCE = 100
"""Parameters that MLflow takes in one request."""
_TAG = "protocl.folder"
_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"


class MLflow(Tracker):
    """MLflow's store: of ``MLFLOW_TRACKING_URI``, else the folder ``OUTPUT/mlruns``.

    A folder takes several processes at once, as in a sweep with ``jobs``; MLflow 3 wants
    ``MLFLOW_ALLOW_FILE_STORE=true`` set to show one.
    """

    def __init__(self, place: Place) -> None:
        local = (place.output / "mlruns").resolve().as_uri()
        uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else local
        # Of runs side by side only one may make their experiment.
        with _folders_allowed(), locked(place.output / "mlruns"):
            self.client = MlflowClient(tracking_uri=uri)
            self.run_id = self._earlier(place) or self._begin(place)
        self._waiting: list[Metric] = []

    def _earlier(self, place: Place) -> str | None:
        """The run of this folder, if an earlier process began it."""
        experiment = self.client.get_experiment_by_name(place.name)
        if experiment is None:
            return None
        wanted = f"tags.`{_TAG}` = '{_quoted(place)}'"
        found = self.client.search_runs([experiment.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _begin(self, place: Place) -> str:
        experiment = self.client.get_experiment_by_name(place.name)
        number = (
            self.client.create_experiment(place.name)
            if experiment is None else experiment.experiment_id
        )  # fmt: skip
        tags = {_TAG: _quoted(place), "mlflow.runName": place.folder.name}
        run_id: str = self.client.create_run(number, tags=tags).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in place.settings.items()]
        for start in range(0, len(params), _AT_ONCE):
            self.client.log_batch(run_id, params=params[start : start + _AT_ONCE])
        return run_id

    def log(self, name: str, value: float, step: int) -> None:
        """See :meth:`.Tracker.log`."""
        self._waiting.append(Metric(name, value, int(time.time() * 1000), step))
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """See :meth:`.Tracker.flush`."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.client.log_batch(self.run_id, metrics=waiting)

    def close(self, *, failed: bool) -> None:
        """See :meth:`.Tracker.close`."""
        self.flush()
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


@contextmanager
def _folders_allowed() -> Iterator[None]:
    """MLflow 3 opens a store in a folder only where the environment says that it may."""
    before = os.environ.get(_ALLOWED)
    os.environ[_ALLOWED] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ALLOWED]
        else:
            os.environ[_ALLOWED] = before


def _quoted(place: Place) -> str:
    """The folder of the run, as it may stand in a filter."""
    return place.folder.resolve().as_uri()
