"""How tables look that a command prints to be read, not to be kept."""

from __future__ import annotations

from rich import box
from rich.table import Table


def plain_table(title: str) -> Table:
    """An empty table under a bold title, with a line below its head and no other frame."""
    return Table(
        title=title, title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
