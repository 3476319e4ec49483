"""Docstrings, which are written for ``help()``, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from textwrap import dedent

from latex2mathml.converter import convert

_ROLE = re.compile(r":(?P<role>[a-z]+):`(?P<short>~?)(?P<target>[^`]*)`")
_EQUATION = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 {2,}\S.*)*)", re.MULTILINE)
_RULE = re.compile(r"^ *=+( +=+)+ *$")
_LITERAL = re.compile(r"^( *)(.*)::\n\n((?:\1 {2,}.*\n?|\n)+)", re.MULTILINE)
_SOURCE = re.compile(r"^( *)(Source|Notation): ", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


def markdown(text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """A docstring as Markdown; its sections for arguments stay as Google's style has them.

    Args:
        text: the docstring.
        link: the identifier under which a name is documented, or None.
    """
    text = _EQUATION.sub(lambda found: f"{found[1]}{mathml(found[2], display='block')}\n", text)
    text = _ROLE.sub(lambda found: _reference(found, link), text)
    text = _LITERAL.sub(_code, text)
    text = _SOURCE.sub(r"\1**\2**: ", text)
    text = _EXAMPLE.sub(r"\1Examples:", text)
    return "\n".join(_with_examples(_with_tables(text.splitlines())))


def mathml(latex: str, display: str = "inline") -> str:
    """A formula for browsers that take it as it is, without a script and without a font."""
    return convert(" ".join(latex.split()), display=display)


def _reference(found: re.Match[str], link: Callable[[str], str | None]) -> str:
    if found["role"] == "math":
        return mathml(found["target"])
    target = found["target"].lstrip(".")
    shown = target.rpartition(".")[2] if found["short"] else target
    home = link(target.rpartition(".")[2])
    return f"`{shown}`" if home is None else f"[`{shown}`][{home}]"


def _code(found: re.Match[str]) -> str:
    indent, before, block = found.groups()
    lines = dedent(block).strip("\n").splitlines()
    body = "\n".join(f"{indent}{line}" for line in ("```text", *lines, "```"))
    return f"{indent}{before}:\n\n{body}\n\n"


def _with_examples(lines: Iterable[str]) -> Iterator[str]:
    """The lines, with examples that stand by themselves in a section for examples."""
    inside = False
    for line in lines:
        if line.startswith(">>>") and not inside:
            inside = True
            yield "Examples:"
        inside = inside and bool(line)
        yield f"    {line}" if inside else line


def _with_tables(lines: list[str]) -> Iterator[str]:
    """The lines, with a table between rules of equals signs as a table of Markdown."""
    rows: list[str] | None = None
    rules: list[str] = []
    for line in lines:
        if _RULE.match(line):
            rules.append(line)
            rows = rows or []
            if len(rules) == 3:
                yield from _table(rules[0], rows)
                rows, rules = None, []
        elif rows is None:
            yield line
        else:
            rows.append(line)


def _table(rule: str, rows: list[str]) -> Iterator[str]:
    spans = [match.span() for match in re.finditer("=+", rule)]
    ends = [*(start for start, _ in spans[1:]), None]
    indent = " " * spans[0][0]
    for number, row in enumerate(rows):
        cells = [row[start:end].strip() for (start, _), end in zip(spans, ends, strict=True)]
        yield f"{indent}| {' | '.join(cells)} |"
        if number == 0:
            yield f"{indent}|{' --- |' * len(cells)}"
