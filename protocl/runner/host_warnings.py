"""Notices about Avalanche and what it requires, which a user of protocl need not act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_HOSTS = {"avalanche", "jaxopt", "qpsolvers"}


@contextmanager
def hidden_host_notices() -> Iterator[None]:
    """Do not show deprecation warnings that come from within Avalanche; all others are shown.

    Nor that qpsolvers finds no solver, when Avalanche imports it for GEM, which says so itself.

    Avalanche switches the filter for them on again at each one, so a filter does not help.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            deprecation = issubclass(category, (DeprecationWarning, FutureWarning))
            hidden = deprecation or str(message).startswith("no QP solver found")
            if not (hidden and _HOSTS.intersection(Path(filename).parts)):
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = show_others
        yield
