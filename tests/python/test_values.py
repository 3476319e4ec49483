"""Python's values as settings: what sweeps, what is one value, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.config.compose import to_yaml
from protocl.errors import ConfigError
from protocl.federation.runner.run import FEDERATION
from protocl.python.values import arguments_of
from protocl.runner.experiment import EXPERIMENT
from protocl.runner.kind import Kind


def configured(kind: Kind[Any], *words: Any, **values: Any) -> list[Any]:
    return kind.load(arguments_of(kind, words, values))


# Of OmegaConf's own language: references, and the mark of a value that is missing.
TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: "${" not in text and text != "???"
)


@given(TEXTS)
@settings(max_examples=20, deadline=None)
def test_a_text_arrives_as_it_is_and_survives_the_file(text: str) -> None:
    (config,) = configured(EXPERIMENT, strategy="nearest_mean", benchmark={"path": text})
    assert config.benchmark.path == text
    assert EXPERIMENT.from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    "text", ["a,b", "seed=1", "[1, 2]", "1", "null", "true", "1e3", "o'b\"", ""]
)
def test_a_text_is_no_yaml_and_no_sweep(text: str) -> None:
    (config,) = configured(EXPERIMENT, strategy="nearest_mean", benchmark={"path": text})
    assert config.benchmark.path == text


@pytest.mark.parametrize(
    "seeds", [[1, 2], range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), 2]]
)
def test_a_list_is_a_sweep(seeds: Any) -> None:
    configs = configured(EXPERIMENT, "strategy=slda,nearest_mean", seed=seeds)
    found = [(config.strategy.name, config.seed) for config in configs]
    assert found == [("slda", 1), ("slda", 2), ("nearest_mean", 1), ("nearest_mean", 2)]


@pytest.mark.parametrize("order", [[3, 1], (3, 1), np.array([3, 1]), [[3, 1]]])
def test_a_list_is_one_value_where_the_setting_is_a_list(order: Any) -> None:
    (config,) = configured(EXPERIMENT, strategy="slda", benchmark={"class_order": order})
    assert config.benchmark.class_order == [3, 1]


def test_lists_of_lists_are_a_sweep_over_lists() -> None:
    configs = configured(
        EXPERIMENT, strategy="slda", benchmark={"class_order": [[3, 1], (1,), None]}
    )
    assert [config.benchmark.class_order for config in configs] == [[3, 1], [1], None]


def test_the_part_that_is_picked_decides_whether_a_setting_is_a_list() -> None:
    pair = configured(EXPERIMENT, strategy={"head": {"shrinkage": [1.0, 0.5]}, "name": "fecam"})
    assert [config.strategy.head.shrinkage for config in pair] == [(1.0, 0.5)]
    two = configured(EXPERIMENT, strategy={"head": {"shrinkage": [1.0, 0.5]}, "name": ["slda"]})
    assert [config.strategy.head.shrinkage for config in two] == [1.0, 0.5]


def test_values_of_every_kind() -> None:
    (config,) = configured(
        EXPERIMENT,
        {"strategy.head.tukey": None},
        strategy="fecam",
        device=torch.device("cpu"),
        output=Path("with space"),
        resume=True,
        benchmark={"validation": np.float32(0.5), "n_experiences": np.int64(2)},
    )
    assert (config.strategy.head.tukey, config.device, config.output) == (None, "cpu", "with space")
    assert (config.resume, config.benchmark.validation) == (True, 0.5)
    assert config.benchmark.n_experiences == 2


def test_keys_of_a_federation_may_be_short() -> None:
    configs = configured(FEDERATION, "federation=digits", clients=[10, 20], method={"head": "lda"})
    assert [config.federation.clients for config in configs] == [10, 20]


def test_of_a_key_given_twice_the_later_counts() -> None:
    named = configured(EXPERIMENT, "strategy=slda", "seed=1,2", seed=3)
    typed = configured(EXPERIMENT, {"seed": 3}, "seed=1,2", strategy="slda")
    assert ([run.seed for run in named], [run.seed for run in typed]) == ([3], [1, 2])


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        ([], {"seed": object()}, "seed=<object object"),
        ([], {"seed": {1, 2}}, "cannot be a set"),
        ([], {"benchmark": {"path": b"x"}}, "benchmark.path=b'x': a setting cannot be a bytes"),
        ([], {"seed": []}, r"seed=\[\]: a sweep over no values"),
        ([], {"seed": (1, 2)}, r"seed=\[1, 2\]: expected int"),
        ([], {"seed": [1, True]}, "seed=True: expected int"),
        ([], {"jobs": [1, 2]}, r"jobs=\[1, 2\]: 'jobs' takes one value"),
        ([], {"sed": [1, 2]}, "unknown key sed: did you mean seed"),
        ([], {"lr": 0.1}, "unknown key lr: did you mean strategy.lr"),
        ([], {"strategy.lr": 0.5}, "has no effect"),
        ([3], {}, "3: expected a text such as 'seed=1'"),
        (["seed"], {}, "'seed' is not of the form key=value"),
    ],
)
def test_what_is_no_setting_is_refused_with_its_name(
    words: list[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(EXPERIMENT, *words, **{"strategy": "slda", **values})
