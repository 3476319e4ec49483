"""An extension of griffe: docstrings of the API reference as Markdown."""

from __future__ import annotations

from functools import cache
from typing import Any

import griffe


class Markdown(griffe.Extension):
    """Turns each docstring into Markdown as soon as its object is known."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring, if there is one."""
        from docstrings import markdown

        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, _public().get)


@cache
def _public() -> dict[str, str]:
    from api import public_names

    return public_names()
