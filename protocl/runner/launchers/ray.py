"""``launcher=ray``: each run is a task on a Ray cluster, or on one that is started here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocl.config.schema import RunConfig
from protocl.errors import ConfigError
from protocl.runner.kind import Kind
from protocl.runner.launchers.base import LostError, Order, RemoteWorker, carry_out


class RayWorker(RemoteWorker):
    """Orders one task after the other.

    ``RAY_ADDRESS`` names a cluster that is there. A run on ``device=cuda`` takes one GPU.

    Args:
        kind, tell: see :class:`.RemoteWorker`.
        cores: that a run takes.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, kind: Kind[Any], tell: Callable[[int, str], None], cores: int) -> None:
        super().__init__(kind, tell)
        try:
            import ray
        except ImportError as error:
            raise ConfigError("launcher=ray needs Ray: pip install 'protocl[ray]'") from error
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        self._ray = ray
        self._cores = cores
        self._task: Any = None

    def order(self, order: Order, config: RunConfig) -> tuple[str | None, int]:
        """See :class:`.RemoteWorker`."""
        gpus = 1 if config.device.startswith("cuda") else 0
        # Ray's own second try would begin in silence.
        remote = self._ray.remote(num_cpus=self._cores, num_gpus=gpus, max_retries=0)(carry_out)
        self._task = remote.remote(order)
        try:
            answer: tuple[str | None, int] = self._ray.get(self._task)
        except self._ray.exceptions.RayTaskError as error:
            return f"{error.cause!r} in Ray's task", 1
        except self._ray.exceptions.RayError as error:
            raise LostError(str(error).splitlines()[0]) from error
        return answer

    def close(self) -> None:
        """See :class:`.Worker`."""
        if self._task is not None:
            self._ray.cancel(self._task, force=True)
