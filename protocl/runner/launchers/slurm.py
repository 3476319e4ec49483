"""``launcher=slurm``: each run is a job, submitted by submitit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocl.config.schema import RunConfig
from protocl.errors import ConfigError
from protocl.runner.kind import Kind
from protocl.runner.launchers.base import LostError, Order, RemoteWorker, carry_out

LOGS = "slurm"
"""Folder, beside the runs, of what submitit writes."""


class SlurmWorker(RemoteWorker):
    """Submits one job after the other.

    A job that is killed, or runs into its time limit, is submitted again and continues.

    Args:
        kind, tell: see :class:`.RemoteWorker`.
        config: ``slurm`` says what a job takes, ``output`` where its logs go.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(
        self, kind: Kind[Any], tell: Callable[[int, str], None], config: RunConfig
    ) -> None:
        super().__init__(kind, tell)
        # Where it configures logging, it closes the handlers of all others.
        os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "launcher=slurm needs submitit: pip install 'protocl[slurm]'"
            ) from error
        self._submitit = submitit
        self._job: Any = None
        asked = config.slurm
        logs = Path(config.output).expanduser().absolute() / LOGS
        try:
            self._executor = submitit.AutoExecutor(folder=logs, cluster=asked.cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"launcher=slurm: {error}; slurm.cluster=local tries it on this machine"
            ) from error
        more = {} if asked.partition is None else {"slurm_partition": asked.partition}
        self._executor.update_parameters(
            name="protocl", timeout_min=asked.minutes, cpus_per_task=asked.cores,
            gpus_per_node=asked.gpus, **more,
        )  # fmt: skip

    def order(self, order: Order, config: RunConfig) -> tuple[str | None, int]:
        """See :class:`.RemoteWorker`."""
        self._job = self._executor.submit(carry_out, order)
        try:
            answer: tuple[str | None, int] = self._job.result()
        except self._submitit.core.utils.FailedJobError as error:
            return f"{str(error).splitlines()[0]} (see {self._job.paths.stderr})", 1
        except self._submitit.core.utils.UncompletedJobError as error:
            raise LostError(f"job {self._job.job_id}: {str(error).splitlines()[0]}") from error
        return answer

    def close(self) -> None:
        """See :class:`.Worker`."""
        if self._job is not None:
            self._job.cancel()
