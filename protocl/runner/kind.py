"""A kind of run: what one of the commands adds to the runner that all of them share."""

from __future__ import annotations

import gc
import shutil
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch

from protocl.config.arguments import Argument, Settings
from protocl.config.compose import compose_all
from protocl.config.presets import flatten, read_mapping, settle
from protocl.errors import ConfigError, ProtoclError
from protocl.runner.context import CHECKPOINTS, Config, RunContext
from protocl.runner.folders import LOG_FILE, exclusive, is_complete, read_result
from protocl.runner.progress import ProgressCallback

if TYPE_CHECKING:
    from rich.console import Console


class Kind(ABC, Generic[Config]):
    """How runs of one kind are configured, carried out and shown. It has no state.

    Attributes:
        name: of the kind; names the preset on the command line as well.
        keeps_checkpoints: whether the last ones are of use after the run.
    """

    name: ClassVar[str]
    keeps_checkpoints: ClassVar[bool] = False

    # -- configuration ----------------------------------------------------------------------

    @abstractmethod
    def compose(self, settings: Settings) -> Config:
        """The configuration of one run, every key and value checked.

        Raises:
            ConfigError: an unknown key or name, or a value that does not fit its key.
        """

    def settle(self, arguments: Sequence[Argument]) -> list[Settings]:
        """Keys and values of all runs that ``key=value`` texts ask for; a comma makes a sweep."""
        return settle(arguments, self.name)

    def load(self, arguments: Sequence[Argument]) -> list[Config]:
        """The configurations of all runs that ``key=value`` texts ask for.

        Raises:
            ConfigError: as for :meth:`compose`; or the preset does not exist.
        """
        return compose_all(self.compose, self.settle(arguments))

    def from_yaml(self, text: str) -> Config:
        """The configuration that :func:`protocl.config.compose.to_yaml` wrote."""
        content = read_mapping(text.encode(), "the configuration")
        return self.compose(flatten(content))

    # -- a run ------------------------------------------------------------------------------

    @abstractmethod
    def execute(self, run: RunContext[Config]) -> dict[str, Any]:
        """Carry out what remains of a run.

        Returns:
            What ``result.json`` says of it besides what all kinds have in common:
            ``benchmark``, ``backbone``, a section named after the kind and, where test samples are
            answered, ``strategy``, ``metrics`` and ``confusion``.
        """

    def ready(self, configs: Sequence[Config]) -> None:
        """Import what the runs need and several processes cannot import once they have met."""

    def execute_together(self, run: Any) -> dict[str, Any]:
        """:meth:`execute` in each of several processes that ``torchrun`` started.

        Args:
            run: a :class:`protocl.runner.together.context.SharedContext`.

        Raises:
            ConfigError: runs of this kind are not distributed, unless a subclass says how.
        """
        raise ConfigError(
            f"runs of kind '{self.name}' are not distributed: start them without torchrun (jobs=N "
            "runs a sweep side by side)"
        )

    def carry_out(
        self,
        config: Config,
        folder: Path,
        on_progress: ProgressCallback | None = None,
        *,
        bars: bool = False,
    ) -> dict[str, Any]:
        """Carry out a run, or the rest of one that was interrupted.

        Checkpoints are written on the way. Called again with the same configuration and folder, it
        continues there and ends with the numbers that an undisturbed run ends with; on the CPU bit
        for bit.

        Args:
            config: what to run.
            folder: existing folder of the run (:func:`protocl.runner.folders.open_run`).
            on_progress: is told where the run is.
            bars: show a bar on standard error while features are computed.

        Returns:
            The content of ``result.json``.

        Raises:
            ProtoclError: the configuration, the data or a checkpoint does not allow the run.
        """
        with exclusive(folder):
            result = read_result(folder)
            if result is None or not is_complete(result):
                gc.collect()  # earlier runs refer to themselves, and may hold gigabytes
                threads = torch.get_num_threads()
                try:
                    run = RunContext(self.name, config, folder, on_progress, bars=bars)
                    result = run.write(self.execute(run), complete=True)
                finally:
                    torch.set_num_threads(threads)
            if not self.keeps_checkpoints:
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            return result

    def attempt(
        self,
        config: Config,
        folder: Path,
        on_progress: ProgressCallback | None = None,
        *,
        bars: bool = False,
    ) -> tuple[str | None, int]:
        """:meth:`carry_out`, whose failure stops no other run.

        Returns:
            What went wrong, or None, and the exit code. The traceback of what nobody foresaw is
            added to the run's log.
        """
        try:
            self.carry_out(config, folder, on_progress, bars=bars)
        except ProtoclError as error:
            return str(error), error.exit_code
        except Exception as error:
            with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            return f"{type(error).__name__}: {error} (see {folder / LOG_FILE})", 1
        return None, 0

    # -- afterwards -------------------------------------------------------------------------

    def show(self, folders: Sequence[Path], output: Path | None, console: Console) -> None:
        """Print the table of finished runs.

        Args:
            folders: of the runs, at least one.
            output: receives the table with plots; None for a single run.
            console: where to print.
        """
        from protocl.report import compare

        compare(folders, output, console=console)
