"""What protocl tells a paper to cite."""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest

from protocl.config.info import StrategyInfo
from protocl.registry import HEADS, STRATEGIES, Registry
from protocl.report.groups import group_runs
from protocl.report.paper.references import bibliography, entries, parts_of
from protocl.report.runs import load_runs
from protocl.source import constant, definition
from tests.report.results import make_result, write_run

UNPUBLISHED = {"federated:robust", "reconnaissance:finetune", "reconnaissance:joint"}
"""Baselines, and what has several sources, which its page names."""


def _plain(text: str) -> str:
    """Letters without accents, braces and TeX commands."""
    text = unicodedata.normalize("NFKD", text)
    return re.sub(r"[^a-z0-9 ]", "", text.lower())


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_published_strategy_is_cited_as_its_settings_say(name: str) -> None:
    part = definition(STRATEGIES.entries()[name])
    info = constant(part, "info", StrategyInfo) if part else None
    if info is None:
        info = STRATEGIES.get(name).info
    cited = entries().get(f"strategy:{name}", [])
    if info.paper == "-":
        assert cited == []
        return
    paper = info.paper.split(";")[0]
    assert len(cited) == 1
    year = re.search(r"\d{4}", paper)
    assert year is not None
    assert f"year = {{{year.group()}}}" in cited[0]
    surname = paper.split(" et al.")[0].split(" & ")[0]
    if "et al." in paper or "&" in paper:
        assert _plain(surname) in _plain(cited[0].split("author = ")[1].split(",")[0])


@pytest.mark.parametrize("kind", ["federated", "reconnaissance"])
def test_methods_of_federations_are_cited(kind: str) -> None:
    names = {f"{kind}:{name}" for name in Registry(f"protocl.{kind}", "method").names()}
    assert names - UNPUBLISHED <= entries().keys()


def test_entries_name_parts_that_exist() -> None:
    known = {f"strategy:{name}" for name in STRATEGIES.names()}
    known |= {f"head:{name}" for name in HEADS.names()}
    for kind, group in (("federated",) * 2, ("reconnaissance",) * 2, ("benchmark", "benchmarks")):
        known |= {f"{kind}:{name}" for name in Registry(f"protocl.{group}", "part").names()}
    assert entries().keys() <= known


def test_the_file_is_whole() -> None:
    text = files("protocl.report.paper").joinpath("references.bib").read_text("utf-8")
    starts = re.findall(r"^@(\w+)\{([^,\s]+),$", text, re.MULTILINE)
    keys = [key for _, key in starts]
    assert len(keys) == len(set(keys)) == text.count("\n@")
    for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE)[1:]:
        assert entry.count("{") == entry.count("}")
        assert {"title", "author", "year", "keywords"} <= set(
            re.findall(r"^  (\w+) = ", entry, re.M)
        )


def test_each_is_cited_once_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    for strategy in ("slda", "avalanche_slda", "mine"):
        write_run(tmp_path, make_result(strategy=strategy))
    benchmarks, _ = group_runs(load_runs([tmp_path])[0])
    text = bibliography(benchmarks)
    assert text.count("@inproceedings{hayes2020slda,") == 1
    assert "keywords" not in text
    assert "% No entry is known for:" in text
    assert "strategy:mine" in text
    assert parts_of(benchmarks[0].groups[0])[-1] == "benchmark:digits"
