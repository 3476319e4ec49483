"""The documentation site: a page for each name, no link into the void, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from protocl.federation.config.schema import METHODS
from protocl.federation.reconnaissance.config import METHODS as MISSIONS
from protocl.registry import (
    ADAPTATIONS,
    BACKBONES,
    BENCHMARKS,
    HEADS,
    MAPS,
    SCORES,
    STRATEGIES,
    Registry,
)

pytest.importorskip("mkdocs_autorefs", reason="needs the extra docs")
pytest.importorskip("material", reason="needs the extra docs")


ROOT = Path(__file__).parents[2]
FOLDERS = {
    "strategies": STRATEGIES, "heads": HEADS, "maps": MAPS, "scores": SCORES, "federated": METHODS,
    "missions": MISSIONS, "benchmarks": BENCHMARKS, "backbones": BACKBONES,
    "adaptations": ADAPTATIONS,
}  # fmt: skip
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that fetch something by themselves, and the attribute that says what."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning of mkdocs is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class Page(HTMLParser):
    """What a page fetches, where it links to, its anchors and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self._code = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get(LOADS.get(tag, "")) and values.get("rel") not in (
            "canonical",
            "next",
            "prev",
        ):
            self.fetched.append(values[LOADS[tag]])
        self._code += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text.append(data)


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 80
    return found


@pytest.mark.parametrize(("folder", "registry"), FOLDERS.items(), ids=list(FOLDERS))
def test_every_registered_name_has_a_page(site: Path, folder: str, registry: Registry) -> None:
    listed = read(site / folder / "index.html").links
    for name, entry in registry.entries().items():
        if entry.value.startswith("protocl."):
            page = site / folder / f"{name}.html"
            assert page.is_file(), f"{registry.kind} '{name}' has no page"
            assert f"{name}.html" in listed
            bare = name in ("identity", "unit", "distance")
            assert bare or "Settings" in "".join(read(page).text)


def test_pages_say_what_the_code_says(site: Path) -> None:
    napa_vq = (site / "strategies" / "napa_vq.html").read_text(encoding="utf-8")
    for said in ("strategy.loss.k", ">15<", "80 D + 128 C + 136", "53,896", "malepathirana"):
        assert said in napa_vq
    ridge = (site / "heads" / "ridge.html").read_text(encoding="utf-8")
    assert "<td>Fed3R</td>" in ridge  # a table of reStructuredText
    slda = (site / "strategies" / "slda.html").read_text(encoding="utf-8")
    assert 'href="../heads/lda.html"' in slda
    assert "neighbours are drawn for each sample" in napa_vq  # what docs/methods.md says of it
    assert "results.html" in "".join(read(site / "strategies" / "slda.html").links)
    choosing = (site / "choosing.html").read_text(encoding="utf-8")
    assert '<a href="strategies/slda.html"><code>strategy=slda</code></a>' in choosing


def test_notebooks_are_pages_with_their_pictures(site: Path) -> None:
    names = [file.stem for file in (ROOT / "notebooks").glob("*.ipynb")]
    assert len(names) >= 4
    for name in names:
        pictures = [url for url in read(site / "notebooks" / f"{name}.html").fetched if name in url]
        assert pictures
        assert all((site / "notebooks" / url).read_bytes()[:4] == b"\x89PNG" for url in pictures)


def test_formulas_need_no_script(site: Path) -> None:
    page = (site / "api" / "protocl.metrics.html").read_text(encoding="utf-8")
    assert "<mfrac>" in page
    assert ".. math" not in page


def test_docstrings_are_no_longer_restructured_text(site: Path) -> None:
    for path in pages(site):
        text = "".join(read(path).text)
        assert not re.search(r":(class|meth|func|mod|data|math):", text), path
        assert ">>>" not in text, path


def test_the_public_names_are_in_the_reference(site: Path) -> None:
    anchors = {anchor for path in (site / "api").glob("*.html") for anchor in read(path).anchors}
    names = (
        "protocl.PrototypeMemory", "protocl.PrototypeMemory.update", "protocl.run",
        "protocl.heads.NearestMean", "protocl.heads.LinearDiscriminant",
        "protocl.heads.Mahalanobis", "protocl.heads.Ridge",
        "protocl.heads.BayesianPrototypes", "protocl.strategies.NAPAVQ",
        "protocl.strategies.PrototypePlugin", "protocl.strategies.NAPAVQPlugin",
        "protocl.federation.FederatedPrototypes", "protocl.federation.simulate",
        "protocl.PrototypeClassifier", "protocl.load_model",
        "protocl.memory.pending.PendingUpdates", "protocl.streaming.stream",
        "protocl.streaming.StreamConfig",
    )  # fmt: skip
    assert [name for name in names if name not in anchors] == []


def test_no_link_leads_nowhere(site: Path) -> None:
    broken = [
        (str(path.relative_to(site)), link)
        for path in pages(site)
        if path.name != "404.html"
        for link in (*read(path).links, *read(path).fetched)
        if not leads_somewhere(path, link)
    ]
    assert not broken


def leads_somewhere(path: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or link == "#":
        return True
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    return (
        not parts.fragment
        or target.suffix != ".html"
        or unquote(parts.fragment) in read(target).anchors
    )


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    assert [(path.name, url) for path in pages(site) for url in external(read(path))] == []
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", text), style
    assert not list(site.rglob("*.woff*"))


def external(page: Page) -> Iterator[str]:
    yield from (url for url in page.fetched if urlsplit(url).netloc)


def test_search_works_without_a_server(site: Path) -> None:
    """A page that is no server's may not fetch: index and worker come as scripts."""
    text = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    entries = json.loads(text.removeprefix("var __index = "))["docs"]
    assert any("napa_vq" in entry["location"] for entry in entries)
    assert "assets/iframe-worker/shim.js" in read(site / "index.html").fetched
    assert (site / "assets" / "iframe-worker" / "LICENSE").is_file()


def test_the_generators_are_no_part_of_the_site(site: Path) -> None:
    assert not list(site.rglob("*.py"))
