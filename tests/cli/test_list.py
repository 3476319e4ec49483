"""``protocl list``: strategies by what they keep and train; summaries that are sentences."""

from __future__ import annotations

import re

import pytest

from protocl.cli.list import KINDS, tables
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.registry import STRATEGIES

OURS = [name for name, e in STRATEGIES.entries().items() if e.value.startswith("protocl.")]


@pytest.mark.parametrize("name", OURS)
def test_what_a_strategy_says_of_its_backbone_is_true(name: str) -> None:
    config = STRATEGIES.get(name)
    assert config.info.trains_backbone == config().trains_backbone


def names(**chosen: bool) -> set[str]:
    (table,) = tables("strategies", **chosen)
    return set(table.columns[0].cells)


def test_strategies_are_chosen_by_what_they_keep_and_train() -> None:
    everything, frozen, without = names(), names(frozen=True), names(no_samples=True)
    assert {"slda", "fecam_vit", "ranpac_1000"} <= frozen < everything
    assert {"naive", "napa_vq_released", "aper"} & frozen == set()
    assert without & {"replay", "icarl_nme", "protocl", "protocl_tuned", "joint"} == set()
    assert {"prd", "prd_released", "slda"} <= without < everything
    assert names(frozen=True, no_samples=True) == frozen & without


def test_only_strategies_are_listed_where_they_are_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "--no-samples"]) == 0
    assert "benchmark=NAME" not in capsys.readouterr().out
    assert main(["list", "heads", "--frozen"]) == 2
    assert "protocl list strategies" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="list maps"):
        list(tables("maps", no_samples=True))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_summaries_are_sentences(kind: str) -> None:
    (table,) = tables(kind)
    for name, said in zip(*(column.cells for column in table.columns), strict=True):
        text = str(said)
        if "acme" in name:  # of a third party
            continue
        assert text.endswith("."), (name, text)
        assert text.count("(") == text.count(")"), (name, text)
        assert len(text.split()) > 3, (name, text)
        assert not re.search(r"\b\w \.|_\w \.|Settings of", text), (name, text)
