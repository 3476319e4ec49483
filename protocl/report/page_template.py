"""The templates that tables and pages are made of."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def fill(template: str, **values: Any) -> str:
    """What a template of this package gives with these values, all of which are escaped."""
    environment = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def resource(name: str) -> str:
    """The text of a file of this package."""
    return (files("protocl.report") / name).read_text(encoding="utf-8")
