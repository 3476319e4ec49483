"""A progress bar that shows itself only when the work takes a while."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

DELAY_SECONDS = 2.0


def progress_bar(description: str, total: int | None, *, enabled: bool = True) -> tqdm[Any]:
    """A bar for a ``with`` block; after two seconds it appears on a terminal's standard error.

    Args:
        description: what is being done, shown before the bar.
        total: number of steps, or None where it is not known; ``bar.update(n)`` counts them.
        enabled: False for no bar at all.
    """
    return tqdm(
        total=total, desc=description, delay=DELAY_SECONDS, leave=False,
        disable=None if enabled else True,
    )  # fmt: skip
