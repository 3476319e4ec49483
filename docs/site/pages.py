"""The page of a registered part, and the list of all parts of a kind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import settings
import yaml
from catalogue import KINDS, Kind, described, module_doc, names, ready_made
from docstrings import markdown
from griffe import Docstring, DocstringSectionExamples, DocstringSectionText

from protocl.cli.list import first_sentence
from protocl.config.info import StrategyInfo
from protocl.config.sections import name_of_head
from protocl.registry import HEADS
from protocl.report.paper.references import entries
from protocl.strategies.frozen.recipe import RecipeConfig

Link = Callable[[str], str | None]
DOCS = Path(__file__).parents[1]
_BULLET = re.compile(r"^- ((?:`\w+`(?:, )?)+): (.*(?:\n  .*)*)", re.MULTILINE)
_MEASURED = (
    "results", "statistics_methods", "pretrained", "drift", "open_world", "discovery",
    "federation", "reconnaissance",
)  # fmt: skip
"""Pages with measurements."""
_LIST = {
    "strategies": "What may be typed for `strategy=NAME`, and what each keeps from one experience "
    "to the next, in bytes for `D` features, `C` classes before it, `M` random features. "
    "[How they compare](../methods.md); [how to choose](../choosing.md).",
    "heads": "A head turns the statistics of a memory into answers. Any of them works in "
    "`strategy=frozen strategy.head=NAME`, in federations as `method.head=NAME`, in "
    "`PrototypeClassifier`, and in a model on disk.",
    "maps": "A feature map is a function of one sample that is applied before statistics are "
    "summed, and to queries. Every head takes one.",
    "scores": "How well known a sample looks, high for known: `unknown=true` reports every score "
    "that the memory allows. [How they compare](../open_world.md).",
    "federated": "What clients exchange. [How they compare](../federation.md).",
    "missions": "What clients that learn new classes on missions make of them, and tell each other "
    "when they meet. [How they compare](../reconnaissance.md).",
    "benchmarks": "Data by name; `benchmark=NAME` takes one of their recipes as well, such as "
    "`split_cifar100`. [Own data](../data.md).",
    "backbones": "Networks that make features of samples. `backbone=auto` chooses by the samples. "
    "[Pre-trained models](../pretrained.md).",
    "adaptations": "What the first experience may change of a network that stays as it is from "
    "then on. [How they compare](../pretrained.md).",
}


def all_pages(link: Link) -> Iterator[tuple[str, str]]:
    """Path and text of every page about a registered name, and of the lists."""
    differences = dict(_differences())
    for kind in KINDS:
        parts = list(names(kind))
        yield f"{kind.folder}/index.md", _list(kind, parts)
        for name, part in parts:
            text = "\n\n".join(_page(kind, name, part, link, differences.get(name)))
            yield f"{kind.folder}/{name}.md", text + "\n"


def _page(kind: Kind, name: str, part: Any, link: Link, differs: str | None) -> Iterator[str]:
    called = title(name, part)
    yield f"---\ntitle: {called}\n---\n\n# {called} <small>`{kind.typed}{name}`</small>"
    info = getattr(part, "info", None)
    if isinstance(info, StrategyInfo) and info.paper != "-":
        yield f"*{info.paper}*"
    text, examples = _text(described(kind, part), link)
    yield text
    yield f"```bash\n{kind.command.format(name)}\n```"
    made = ready_made(part) if kind.folder == "strategies" else part
    identifier = None if made is None else link(made.__name__)
    if identifier is not None:
        yield f"In Python: [`{identifier}`][{identifier}]."
    yield from _head(part)
    yield from _stored(info)
    yield from _equation(kind, part, made, link)
    yield from _settings(kind, name, part)
    if differs is not None:
        yield f"## Where it differs from the authors' code\n\n{differs}"
    if examples:
        yield f"## Example\n\n```pycon\n{examples}\n```"
    yield from _recipes(kind, name)
    yield from _measured(kind, name, title(name, part))
    cited = entries().get(f"{kind.cited}:{name}")
    if cited:
        yield "## To cite\n\n```bibtex\n" + "\n\n".join(cited) + "\n```"


def title(name: str, part: Any) -> str:
    """What a part is called."""
    info = getattr(part, "info", None)
    called: str = info.title if hasattr(info, "title") else part.__name__
    return called if isinstance(part, type) else name


def _text(part: Any, link: Link) -> tuple[str, str]:
    """What a docstring says apart from arguments, as Markdown, and its examples."""
    texts, examples = [], []
    for section in Docstring(_doc(part, link)).parse("google", warnings=False):
        if isinstance(section, DocstringSectionText):
            texts.append(section.value)
        elif isinstance(section, DocstringSectionExamples):
            examples += [text for _, text in section.value]
        elif section.kind.value == "admonition":
            texts.append(section.value.description)
    return "\n\n".join(texts), "\n".join(examples)


def _doc(part: Any, link: Link) -> str:
    return markdown(inspect.getdoc(part) or "", link)


def _head(part: Any) -> Iterator[str]:
    """Which head answers, of a strategy that is one over a backbone that stays."""
    if not (isinstance(part, type) and issubclass(part, RecipeConfig)):
        return
    chosen = part().head
    named = getattr(chosen, "name", None)
    name = named if chosen.made_by is None else named or name_of_head(chosen.made_by)
    if name in HEADS.names():
        yield f"It answers by the head [`{name}`](../heads/{name}.md), where the equation is."


def _stored(info: Any) -> Iterator[str]:
    if isinstance(info, StrategyInfo):
        yield "## What is stored between experiences"
        samples = "yes" if info.keeps_data else "no"
        yield (
            f"| what | training samples | bytes a class |\n| --- | --- | --- |\n"
            f"| {info.stored_between_experiences} | {samples} | `{info.bytes_per_class}`"
            f"{_example(info.bytes_per_class)} |"
        )
    elif hasattr(info, "stored"):
        yield f"## What is stored\n\nOn the server: {info.stored}."


def _example(formula: str) -> str:
    """The bytes of a formula for numbers that are usual, or nothing where it states none."""
    usual = {"D": 512, "C": 100, "M": 2000}
    used = {
        letter: value for letter, value in usual.items() if re.search(rf"\b{letter}\b", formula)
    }
    if not used:
        return ""
    python = re.sub(r"(\d) (?=[DCM])", r"\1 * ", formula).replace("^", "**")
    value = eval(python, {"__builtins__": {}}, used)
    given = ", ".join(f"{letter} = {number:,}" for letter, number in used.items())
    return f" ({value:,} with {given})"


def _equation(kind: Kind, part: Any, made: Any, link: Link) -> Iterator[str]:
    """What a method's own file says of it at its head."""
    own = kind.folder == "strategies" and made is not None and made.__module__ == part.__module__
    home = part if own or kind.folder in ("federated", "missions") else None
    text = "" if home is None else markdown(module_doc(home), link)
    if text.count("\n") > 1:
        yield f"## How it works\n\n{text}"


def _settings(kind: Kind, name: str, part: Any) -> Iterator[str]:
    if kind.shared is not None:
        yield f"## Settings\n\n[Those of all {kind.title.lower()}](index.md#settings)."
        return
    if kind.folder in ("heads", "maps", "scores"):
        rows = list(settings.of_constructor(part))
        if rows:
            typed = f"Typed as `{_before(kind)}SETTING=VALUE`" if kind.typed else "In Python alone"
            yield f"## Settings\n\n{typed}."
            yield settings.table(rows)
        return
    config = part()
    rows = list(settings.of_config(config, kind.typed.replace("=", ".")))
    yield f"## Settings\n\n{settings.table([row for row in rows if not _idle(config, row.key)])}"
    idle = [row for row in rows if _idle(config, row.key)]
    if idle:
        table = settings.table(idle).replace("\n", "\n    ")
        yield f'??? note "Without effect while the others are as above"\n\n    {table}'


def _before(kind: Kind) -> str:
    return "strategy.head." if kind.folder == "heads" else kind.typed + "NAME:"


def _idle(config: Any, key: str) -> bool:
    return key.partition(".")[2] in getattr(config, "unused", {})


def _recipes(kind: Kind, name: str) -> Iterator[str]:
    """Named settings of a part, with the comment that stands in their file."""
    if not kind.presets:
        return
    folder, found = files("protocl.configs") / kind.presets, []
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        text = file.read_text(encoding="utf-8")
        if yaml.safe_load(text).get("name") == name:
            found.append(f"**`{kind.presets}={Path(file.name).stem}`**\n\n```yaml\n{text}```")
    if found:
        yield "## Recipes\n\n" + "\n\n".join(found)


def _measured(kind: Kind, name: str, called: str) -> Iterator[str]:
    """The pages of measurements that have the part in a command, or in the first column."""
    used = re.compile(
        rf"{re.escape(kind.typed)}(\w+,)*{name}\b|^\| *{re.escape(called)}\b", re.MULTILINE
    )
    texts = {page: (DOCS / f"{page}.md").read_text("utf-8") for page in _MEASURED}
    links = [
        f"[{text.splitlines()[0].lstrip('# ')}](../{page}.md)"
        for page, text in texts.items()
        if used.search(text)
    ]
    if links:
        yield f"## Results\n\nMeasured, with commands: {'; '.join(links)}."


def _differences() -> Iterator[tuple[str, str]]:
    """What ``methods.md`` says of the differences from the authors' code, by name."""
    text = (DOCS / "methods.md").read_text("utf-8").partition("Where we differ")[2]
    for bullet in _BULLET.finditer(text):
        for name in re.findall(r"`(\w+)`", bullet[1]):
            yield name, bullet[2].replace("\n  ", "\n")


def _list(kind: Kind, parts: list[tuple[str, Any]]) -> str:
    rows = [f"# {kind.title}", _LIST[kind.folder]]
    if kind.folder == "strategies":
        head = "| name | method | kept | bytes a class | samples |\n| --- | --- | --- | --- | --- |"
    else:
        head = "| name | what it is |\n| --- | --- |"
    rows.append("\n".join([head, *(_row(*one) for one in parts)]))
    if kind.shared is not None:
        rows.append(f"## Settings\n\n{settings.table(list(settings.of_config(*kind.shared)))}")
    return "\n\n".join(rows) + "\n"


def _row(name: str, part: Any) -> str:
    info = getattr(part, "info", None)
    if not isinstance(info, StrategyInfo):
        said = first_sentence(inspect.getdoc(part) or "") if info is None else f"{info.title}."
        return f"| [`{name}`]({name}.md) | {said} |"
    paper = "" if info.paper == "-" else f" ({info.paper})"
    kept = "yes" if info.keeps_data else "no"
    said = f"{info.title}{paper} | {info.stored_between_experiences}"
    return f"| [`{name}`]({name}.md) | {said} | `{info.bytes_per_class}` | {kept} |"
