"""What mkdocs calls while it builds the site: pages from the registries, links between pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import api
import pages
from catalogue import KINDS
from mkdocs.structure.files import File, Files

import notebooks

ROOT = Path(__file__).parents[2]
_TOP = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_FOLDERS = {
    "strategy=": "strategies", "method=": "federated", "strategy.head=": "heads",
    "method.head=": "heads", "strategy.head.map=": "maps", "backbone=": "backbones",
    "benchmark=": "benchmarks", "strategy.session.adapt=": "adaptations",
}  # fmt: skip
_TYPED = re.compile(r"(?<![\[`])`([^`\n]*?)(\w+)`(?!\])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are generated, and put what the navigation leaves open into it."""
    public = api.public_names()
    made: list[tuple[str, str | bytes]] = [
        *pages.all_pages(public.get), *api.all_pages(), *notebooks.all_pages(), *_top_pages(),
    ]  # fmt: skip
    for path, content in made:
        files.append(File.generated(config, path, content=content))
    folders: dict[str, list[str]] = {}
    for path in (path for path, _ in made if path.endswith(".md")):
        folders.setdefault(f"{posixpath.dirname(path)}/*", []).append(path)
    listed = set(_paths(config.nav))
    present = [file.src_uri for file in files.documentation_pages() if file.inclusion.is_included()]
    folders["*"] = [path for path in present if "/" not in path and path not in listed]
    config.nav = _filled(config.nav, folders)
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Make a page's ``strategy=NAME`` in code a link to the page of that name.

    And ``protocl list KIND`` one to the list of that kind. Pages that are generated have their own.
    """
    if "/" in page.file.src_uri:
        return markdown
    return _TYPED.sub(_linked, markdown)


def _linked(found: re.Match[str]) -> str:
    folders = {kind.folder: kind.registry.names() for kind in KINDS}
    before, name = found.groups()
    if before == "protocl list " and name in folders:
        return f"[{found[0]}]({name}/index.md)"
    if name in folders.get(_FOLDERS.get(before, ""), ()):
        return f"[{found[0]}]({_FOLDERS[before]}/{name}.md)"
    return found[0]


def _top_pages() -> list[tuple[str, str]]:
    """Files of the repository's top that are pages as well, their links as seen from ``docs/``."""
    return [
        (path, (ROOT / name).read_text("utf-8").replace("](docs/", "]("))
        for path, name in _TOP.items()
    ]


def _paths(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [path for value in values for path in _paths(value)]


def _filled(nav: Any, folders: dict[str, list[str]]) -> Any:
    """The navigation with the pages of a folder for ``FOLDER/*``."""
    if isinstance(nav, dict):
        return {title: _filled(value, folders) for title, value in nav.items()}
    if not isinstance(nav, list):
        return nav
    found: list[Any] = []
    for entry in nav:
        found += folders.get(entry, []) if _is_folder(entry) else [_filled(entry, folders)]
    return found


def _is_folder(entry: Any) -> bool:
    return isinstance(entry, str) and entry.endswith("*")
