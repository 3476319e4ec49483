"""The settings of a part, its defaults and what they mean, from the code that has them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from docstrings import markdown
from griffe import Docstring, DocstringSectionAttributes, DocstringSectionParameters

from protocl.config.sections import Part
from protocl.config.validation import hints_of, in_words, range_of

Described = (DocstringSectionAttributes, DocstringSectionParameters)


class Setting(NamedTuple):
    """One key: its default, the values that it may have, and what it means, as Markdown."""

    key: str
    default: str
    values: str
    meaning: str


def of_config(config: Any, prefix: str) -> Iterator[Setting]:
    """Every key of a dataclass and of the sections in it, at any depth.

    Args:
        config: with its defaults.
        prefix: what is typed before its keys, with the dot.
    """
    meanings, hints = meanings_of(type(config)), hints_of(type(config))
    if isinstance(config, Part) and config.made_by is not None:
        meanings = meanings_of(config.made_by) | meanings
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from of_config(value, f"{key}.")
        elif field.name != "name" or "head" in prefix:
            allowed = range_of(type(config), field.name)
            values = in_words(hints[field.name]) if allowed is None else allowed.expected
            yield Setting(key, _written(value), values, meanings.get(field.name, ""))


def of_constructor(made_by: Any) -> Iterator[Setting]:
    """Every argument of a class."""
    meanings = meanings_of(made_by)
    for name, argument in inspect.signature(made_by).parameters.items():
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        default = "needed" if argument.default is argument.empty else _written(argument.default)
        yield Setting(name, default, str(argument.annotation), meanings.get(name, ""))


def table(settings: list[Setting]) -> str:
    """The settings as a table of Markdown."""
    rows = ["| setting | default | values | what it is |", "| --- | --- | --- | --- |"]
    for key, default, values, meaning in settings:
        cells = (f"`{key}`", default, values, meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def meanings_of(made_by: Any) -> Mapping[str, str]:
    """What the docstrings of a class and of those that it is made from say of each name."""
    kind = getattr(made_by, "func", made_by)
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(kind) if isinstance(kind, type) else (kind,)):
        doc = vars(one).get("__doc__") if isinstance(one, type) else one.__doc__
        found |= _described(inspect.cleandoc(doc or ""))
    return found


def _described(doc: str) -> dict[str, str]:
    found = {}
    for section in Docstring(markdown(doc)).parse("google", warnings=False):
        if isinstance(section, Described):
            for entry in section.value:
                text = " ".join(entry.description.split())
                found |= dict.fromkeys(entry.name.split(", "), text)
    return found


def _written(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return f"`[{','.join(map(str, value))}]`"
    return f"`{value}`" if value != "???" else "needed"
