"""The folders of runs: where a run writes, and which one a resumed run continues."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from protocl.config.compose import to_yaml
from protocl.config.schema import RunConfig
from protocl.errors import ConfigError
from protocl.io.atomic import atomic_write, discard_partial
from protocl.report.result import CONFIG_FILE, RESULT_FILE

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
_LOCK_FILE = ".lock"
# Keys that say how a run is carried out, not what it computes.
_INCIDENTAL = ("resume", "jobs", "launcher", "slurm", "output", "cache", "tracker")
_MEASURED = ("encoding_batch",)


def open_run(config: RunConfig) -> Path:
    """The folder for a run: a new one, or with ``resume`` the newest of the same configuration.

    The same configuration means equal values of all keys that say what is computed, not how. Where
    the newest run had others, a warning names them. The folder may hold a finished run: see
    :func:`read_result`.
    """
    if config.resume:
        found = find_run(config)
        if found is not None:
            return found
        _say_what_differs(config)
    return create_run(config)


def create_run(config: RunConfig) -> Path:
    """Make ``<output>/<name>/<time>-<seed>`` with the resolved configuration in it."""
    parent = Path(config.output).expanduser() / config.name
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.seed}"
    attempt = 1
    while True:
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:  # another run of the same second
            attempt += 1
            continue
        write_config(config, folder)
        return folder


def find_run(config: RunConfig) -> Path | None:
    """The newest folder of a run with this configuration, finished or not."""
    wanted = _identity(asdict(config))
    for file, saved in _saved_runs(config):
        if _as_asked(_identity(saved), wanted) == wanted:
            return file.parent
    return None


def kept_setting(folder: Path, key: str) -> Any:
    """A setting in the configuration of the run in ``folder``; None where it has none."""
    file = folder / CONFIG_FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")).get(key) if file.is_file() else None


def write_config(config: RunConfig, folder: Path) -> None:
    """Write the resolved configuration of a run."""
    atomic_write(folder / CONFIG_FILE, to_yaml(config))


def _as_asked(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, without those that it measured and that nobody wants to be others."""
    measured = {
        key: wanted[key]
        for key in _MEASURED
        if wanted.get(key, "") in (None, "tuned") and saved.get(key) != "fixed"
    }
    return saved | measured


def _saved_runs(config: RunConfig) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Configurations in the folders of this name, newest first."""
    parent = Path(config.output).expanduser() / config.name
    for file in sorted(parent.glob(f"*/{CONFIG_FILE}"), reverse=True):
        try:
            saved = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{file} is not readable as YAML: {error}; restore it, or delete its folder"
            ) from error
        if isinstance(saved, dict):
            yield file, saved


def _say_what_differs(config: RunConfig) -> None:
    """Warn where the newest run of this name and seed had other settings of the same parts."""
    asked = _identity(asdict(config))
    wanted = _leaves(asked)
    for file, saved in _saved_runs(config):
        there = _leaves(_as_asked(_identity(saved), asked))
        keys = [key for key in sorted(wanted.keys() | there) if wanted.get(key) != there.get(key)]
        if any(key == "seed" or key.endswith(".name") for key in keys):
            continue
        changes = ", ".join(f"{k}={there.get(k)} (now {wanted.get(k)})" for k in keys)
        logger.warning(
            "resume=true: no run in %s has these settings; %s has %s. Starting anew",
            file.parent.parent, file.parent.name, changes,
        )  # fmt: skip
        return


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that say what is computed, not how, by their keys."""
    return _leaves(_identity(asdict(config)))


def _leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict)
        leaves |= _leaves(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return leaves


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of ``result.json``, or None where a run has not written it yet."""
    file = folder / RESULT_FILE
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete it to continue the run") from error
    return result


def is_complete(result: dict[str, Any] | None) -> bool:
    """Whether a result is that of a run which went to its end."""
    return result is not None and result.get("status") == "complete"


@contextmanager
def exclusive(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes from writing into ``folder``; the system frees it if we are killed.

    What killed processes left half-written there is removed.

    Args:
        folder: it exists.
        patience: seconds to wait for another process that is at work there.

    Raises:
        ConfigError: another process is still at work there.
    """
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise ConfigError(
            f"{folder} is in use by another process; wait for it, or use another folder "
            "(without resume=true each run makes its own)"
        ) from error
    try:
        discard_partial(folder)
        yield
    finally:
        lock.release()


def discard_if_empty(folder: Path) -> None:
    """Remove a folder whose run stopped before its first result, checkpoint or log.

    One in which another process is at work stays.
    """
    if (folder / RESULT_FILE).exists() or has_log(folder):
        return
    if any(folder.rglob("*.ckpt")) or any(folder.rglob("*.sqlite")):
        return
    with suppress(ConfigError), exclusive(folder):  # its complaint that the folder is in use
        shutil.rmtree(folder)


def has_log(folder: Path) -> bool:
    """Whether a run has written anything to its log; one that a process only opened is empty."""
    log = folder / LOG_FILE
    return log.is_file() and log.stat().st_size > 0


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    # Through JSON, so that tuples and lists, which YAML does not tell apart, compare equal.
    kept = {key: value for key, value in config.items() if key not in _INCIDENTAL}
    through: dict[str, Any] = json.loads(json.dumps(kept))
    return through
