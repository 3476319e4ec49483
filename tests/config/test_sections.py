"""Sections that follow from a signature: what becomes a setting, and whose defaults it has."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from protocl.config.compose import load, to_yaml
from protocl.errors import ConfigError
from protocl.heads import LinearDiscriminant, Ridge
from protocl.runner.experiment import EXPERIMENT
from protocl.strategies import SLDA, RanPAC
from tests import third_party


def head_of(*arguments: str) -> Any:
    (config,) = load(list(arguments))
    return config.strategy.head  # type: ignore[attr-defined]


def test_a_head_has_its_defaults_in_one_place() -> None:
    shown = inspect.signature(LinearDiscriminant).parameters
    settings = head_of("strategy=slda").arguments
    assert settings == {name: shown[name].default for name in shown if name != "dtype"}
    assert (
        inspect.signature(SLDA).parameters.items()
        >= {
            name: parameter.replace(kind=parameter.KEYWORD_ONLY)
            for name, parameter in shown.items()
        }.items()
    )


def test_a_recipe_has_its_own_default_for_a_setting_of_its_head() -> None:
    found = head_of("strategy=ranpac").arguments
    assert (found["projection"], found["regularization"]) == (2000, "auto")
    assert inspect.signature(RanPAC).parameters["projection"].default == 2000
    assert inspect.signature(Ridge).parameters["projection"].default is None


def test_another_head_brings_its_own_settings() -> None:
    config = load(["strategy=fetril", "strategy.head=ridge", "strategy.head.regularization=3"])[0]
    assert config.strategy.head.arguments["regularization"] == 3.0  # type: ignore[attr-defined]
    assert EXPERIMENT.from_yaml(to_yaml(config)) == config
    assert head_of("strategy=fetril", "strategy.head=lda").shrinkage == "auto"
    with pytest.raises(ConfigError, match=r"unknown key strategy\.head\.shrinkage"):
        load(["strategy=fetril", "strategy.head=ridge", "strategy.head.shrinkage=0.5"])


def test_a_third_partys_head_has_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    third_party.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pick = ("strategy=frozen", "strategy.head=acme_sharp")
    assert head_of(*pick, "strategy.head.sharpness=3").build().sharpness == 3.0
    assert head_of(*pick).arguments == {"sharpness": 2.0}
    with pytest.raises(
        ConfigError, match=r"strategy\.head\.sharpness=-1\.0: expected a number > 0"
    ):
        load([*pick, "strategy.head.sharpness=-1"])
