"""Where a machine of a deployment keeps its files, without the path of another machine."""

from __future__ import annotations

import os
from pathlib import Path

from protocl.errors import ConfigError

HOME = "PROTOCL_FEDERATION"
"""Variable of each machine's own environment: its folder of the federation."""


def local_path(key: str, value: object) -> Path:
    """The place on this machine that a setting means; a relative one lies below :data:`HOME`.

    Raises:
        ConfigError: it is relative, and this machine has no such folder.
    """
    path = Path(str(value)).expanduser()
    if path.is_absolute():
        return path
    home = os.environ.get(HOME)
    if not home or not str(value):
        raise ConfigError(
            f"{key}='{value}': expected an absolute folder, or one below {HOME}, which this "
            "process does not have: start it in a shell in which environment.sh was sourced"
        )
    return Path(home) / path
