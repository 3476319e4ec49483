"""What to cite for runs: the BibTeX entries of their methods, heads and data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from protocl.report.groups import Benchmark, Group

_ENTRY = re.compile(r"^@\w+\{(?P<key>[^,]+),.*?^\}$", re.MULTILINE | re.DOTALL)
_KEYWORDS = re.compile(r",\n\s*keywords = \{(?P<parts>[^}]*)\}")
_METHOD_KINDS = {"federation": "federated", "reconnaissance": "reconnaissance"}


def bibliography(benchmarks: Sequence[Benchmark]) -> str:
    """BibTeX entries for the methods, heads and data sets of all groups, each once.

    What no entry is known for is listed in a comment at the end: nothing goes uncited unseen.
    """
    known = entries()
    parts = dict.fromkeys(
        part for one in benchmarks for group in one.groups for part in parts_of(group)
    )
    cited = dict.fromkeys(text for part in parts for text in known.get(part, ()))
    missing = [part for part in parts if part not in known]
    comment = f"% No entry is known for: {', '.join(missing)}\n" if missing else ""
    return "\n".join([*(f"{text}\n" for text in cited), comment]).rstrip("\n") + "\n"


def entries() -> dict[str, list[str]]:
    """The entries that protocl brings, by part (``"strategy:slda"``), without their keywords."""
    text = files("protocl.report.paper").joinpath("references.bib").read_text("utf-8")
    by_part: dict[str, list[str]] = {}
    for match in _ENTRY.finditer(text):
        entry = match.group()
        for keywords in _KEYWORDS.finditer(entry):
            for part in keywords.group("parts").split(", "):
                by_part.setdefault(part, []).append(_KEYWORDS.sub("", entry))
    return by_part


def parts_of(group: Group) -> list[str]:
    """What a group's runs are made of, as ``"kind:name"``: method, head where given, data set."""
    run = group.first
    parts = [f"{_METHOD_KINDS.get(run.kind, 'strategy')}:{run.strategy.name}"]
    head = group.settings.get("strategy.head.name") or group.settings.get("method.head.name")
    if head:
        parts.append(f"head:{head}")
    return [*parts, f"benchmark:{run.benchmark.name}"]
