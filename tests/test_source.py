"""What is read from a part's source is what the imported part says."""

from __future__ import annotations

import inspect
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from protocl.config.info import StrategyInfo
from protocl.registry import ADAPTATIONS, BACKBONES, BENCHMARKS, HEADS, STRATEGIES, Registry
from protocl.source import constant, definition, docstring

DESCRIBED = (ADAPTATIONS, BACKBONES, BENCHMARKS, HEADS)


def own(registry: Registry) -> list[EntryPoint]:
    return [entry for entry in registry.entries().values() if entry.module.startswith("protocl.")]


@pytest.mark.parametrize("entry", own(STRATEGIES), ids=lambda entry: entry.name)
def test_a_strategy_states_itself_in_its_source(entry: EntryPoint) -> None:
    part = definition(entry)
    assert part is not None
    assert constant(part, "info", StrategyInfo) == entry.load().info


@pytest.mark.parametrize("registry", DESCRIBED, ids=lambda registry: registry.kind)
def test_docstrings_are_those_of_the_imported_parts(registry: Registry) -> None:
    entries = own(registry)
    assert entries
    for entry in entries:
        part = definition(entry)
        assert part is not None
        assert docstring(part) == inspect.getdoc(entry.load())


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose import is noticed, in a folder with a space and an umlaut."""
    package = tmp_path / "größe 1" / "acme_noticed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(package.parent)
    return package


def entry_of(attr: str, module: str = "acme_noticed.parts") -> EntryPoint:
    return EntryPoint("acme", f"{module}:{attr}", "protocl.strategies")


PARTS = '''
from somewhere import Elsewhere
import protocl.config.info as info_module

class Plain:
    """Größe zählt."""
    info: ClassVar[StrategyInfo] = StrategyInfo("A", "B", stored_between_experiences="C",
                                                keeps_data=False)

class Qualified:
    info = info_module.StrategyInfo("A", "B", "C", False, "D" " E")

class Computed:
    info = StrategyInfo(title(), "B", "C", False)

class Misspelt:
    info = StrategyInfo("A", "B", "C", keep_data=False)

class Rebound:
    """Not this one."""
Rebound = wrap(Rebound)
'''


def test_a_package_of_somebody_else_is_read_without_importing_it(acme: Path) -> None:
    (acme / "parts.py").write_text(PARTS, encoding="utf-8")
    plain, qualified = definition(entry_of("Plain")), definition(entry_of("Qualified"))
    assert plain is not None
    assert qualified is not None
    assert docstring(plain) == "Größe zählt."
    assert constant(plain, "info", StrategyInfo) == StrategyInfo("A", "B", "C", False)
    assert constant(qualified, "info", StrategyInfo) == StrategyInfo("A", "B", "C", False, "D E")
    assert "acme_noticed" not in sys.modules


@pytest.mark.parametrize("attr", ["Elsewhere", "Rebound", "Missing", "Plain.inner", ""])
def test_what_the_source_does_not_define_is_left_to_the_import(acme: Path, attr: str) -> None:
    (acme / "parts.py").write_text(PARTS, encoding="utf-8")
    assert definition(entry_of(attr)) is None


@pytest.mark.parametrize("attr", ["Computed", "Misspelt"])
def test_what_is_no_constant_is_left_to_the_import(acme: Path, attr: str) -> None:
    (acme / "parts.py").write_text(PARTS, encoding="utf-8")
    part = definition(entry_of(attr))
    assert part is not None
    assert constant(part, "info", StrategyInfo) is None


@pytest.mark.parametrize("source", [b"class Plain(", b"\xff\xfe", b"class Plain:\0 pass", b""])
def test_a_damaged_module_is_left_to_the_import(acme: Path, source: bytes) -> None:
    (acme / "parts.py").write_bytes(source)
    assert definition(entry_of("Plain")) is None


@pytest.mark.parametrize("module", ["acme_noticed.absent", "nowhere.at.all", "math", "sys.path"])
def test_a_module_without_source_is_left_to_the_import(acme: Path, module: str) -> None:
    assert definition(entry_of("Plain", module)) is None


def test_a_package_in_one_file_and_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    text = textwrap.dedent('''
        class Plain:
            """In an archive."""
    ''')
    with zipfile.ZipFile(tmp_path / "acme.zip", "w") as archive:
        archive.writestr("acme_zipped/__init__.py", text)
    monkeypatch.syspath_prepend(tmp_path / "acme.zip")
    part = definition(entry_of("Plain", "acme_zipped"))
    assert part is not None
    assert docstring(part) == "In an archive."
