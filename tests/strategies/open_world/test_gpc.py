"""GPC: its prototypical loss by hand, its clusters, and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from protocl.checks import toy
from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.strategies.open_world.density import density_temperatures, prototypical_loss
from protocl.strategies.open_world.discovery import FIRST_CATEGORY
from protocl.strategies.open_world.gpc import GPC, GPCLoss, GPCPlugin
from protocl.strategies.training.contrastive import contrastive, supervised_contrastive
from tests.golden.trained_open_world import assert_close, golden, unit
from tests.strategies.small import (
    assert_continues_bit_for_bit,
    quiet_evaluator,
    train_on,
)


def test_temperatures_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    clusters = np.array([0] * 5 + [1] * 9 + [2] * 30 + [3] + [5] * 2)
    gaps = rng.random(len(clusters))
    widths = np.zeros(6)
    for k in range(6):
        own = gaps[clusters == k]
        if len(own) > 1:
            widths[k] = own.mean() / np.log(len(own) + 10)
    widths[[3, 4]] = widths.max()  # of one sample and of none
    widths = widths.clip(np.percentile(widths, 10), np.percentile(widths, 90))
    found = density_temperatures(torch.tensor(gaps), torch.tensor(clusters), 6, 0.2)
    assert_close(found, (0.2 * widths / widths.mean()).tolist(), 1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.floats(0.01, 10))
def test_laws_of_temperatures(clusters: list[int], scale: float) -> None:
    rows = torch.tensor(clusters)
    gaps = torch.rand(len(rows), generator=torch.Generator().manual_seed(1)).double()
    found = density_temperatures(gaps, rows, 5, 0.1)
    assert float(found.min()) > 0
    assert float(found.mean()) == pytest.approx(0.1)
    torch.testing.assert_close(density_temperatures(scale * gaps, rows, 5, 0.1), found)
    assert density_temperatures(0 * gaps, rows, 5, 0.1).tolist() == [0.1] * 5


def test_loss_leaves_out_samples_without_a_cluster() -> None:
    rng = np.random.default_rng(3)
    features, prototypes = unit(rng.standard_normal((4, 5))), unit(rng.standard_normal((3, 5)))
    heat = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    rows = torch.tensor([2, -1, 0, 0])
    kept = rows >= 0
    expected = functional.cross_entropy((features @ prototypes.T / heat)[kept], rows[kept])
    assert_close(prototypical_loss(features, prototypes, heat, rows), float(expected))
    none = prototypical_loss(features, prototypes, heat, torch.full((4,), -1))
    assert float(none) == 0


def test_contrasts_are_those_of_the_authors_code() -> None:
    """The two that GPC shares with ProtoGCD, whose golden values there are."""
    rng = np.random.default_rng(401)
    rng.standard_normal((16, 6)), rng.standard_normal((5, 6))
    projections = torch.tensor(rng.standard_normal((16, 4)))
    named, labels = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), torch.tensor([0, 1, 2, 0]).repeat(2)
    expected = golden("protogcd")
    both = 0.65 * expected["contrastive"] + 0.35 * expected["supervised_contrastive"]
    assert_close(GPCLoss().of_samples(projections, named, labels), both)
    assert_close(contrastive(projections), expected["contrastive"])
    alone = supervised_contrastive(
        projections[named], labels, temperature=0.07, base_temperature=None
    )
    assert_close(alone, expected["supervised_contrastive"])


def build(train_epochs: int = 3, **given: Any) -> GPC:
    model = toy.model()
    method = GPCPlugin(unlabelled=toy.unlabelled(), hidden=16, outputs=8, **given)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    return GPC(
        model=model, optimizer=optimizer, method=method, train_mb_size=12,
        train_epochs=train_epochs, evaluator=quiet_evaluator(),
    )  # fmt: skip


def test_a_class_that_nobody_named_is_a_category() -> None:
    torch.manual_seed(0)
    strategy = build(8)
    train_on(strategy, toy.stream().train_stream[:2])
    found = strategy.categories(torch.arange(12))
    assert found is not None
    assert (found == FIRST_CATEGORY).all()
    assert strategy.method.discovered is not None
    assert strategy.method.discovered.counts.tolist() == [12]
    assert sorted(strategy.method.centres.ids.tolist()) == [0, 1, 4, 5, FIRST_CATEGORY]


def test_clusters_are_found_without_training_too() -> None:
    strategy = build(0)
    train_on(strategy, toy.stream().train_stream[:1])
    assert strategy.categories(torch.arange(12)) is not None


def test_a_search_over_their_number_ends_with_its_own() -> None:
    strategy = build(2, split_merge=True, new_categories=3)
    train_on(strategy, [toy.stream().train_stream[0]] * 2)
    ids = strategy.method.centres.ids
    assert set(ids[ids < FIRST_CATEGORY].tolist()) == {1, 4, 5}
    assert len(ids) == len(ids.unique())
    assert strategy.method.discovered is not None
    assert torch.isin(strategy.method.discovered.classes, ids).all()


def test_what_comes_after_may_have_more_categories_than_before() -> None:
    method = build().method
    assert (method.numbers(2) - FIRST_CATEGORY).tolist() == [0, 1]
    method._experience = 1
    assert (method.numbers(1) - FIRST_CATEGORY).tolist() == [2]
    assert (method.numbers(2) - FIRST_CATEGORY).tolist() == [2, 3]  # the last may grow
    method._experience = 0
    assert (method.numbers(1) - FIRST_CATEGORY).tolist() == [0]
    assert (method.numbers(3) - FIRST_CATEGORY).tolist() == [4, 5, 6]  # those of others stay


def test_a_stopped_strategy_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_continues_bit_for_bit(build(), toy.stream(), tmp_path)


def test_state_on_disk_is_the_plugin() -> None:
    strategy = build()
    train_on(strategy, toy.stream().train_stream[:1])
    other = GPCPlugin(hidden=16, outputs=8)
    other.load_state_dict(strategy.method.state_dict())
    features = torch.rand(5, 16)
    assert torch.equal(other.assigned(features), strategy.method.assigned(features))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clusters_from": -1}, r"clusters_from=-1"),
        ({"restarts": 0}, r"restarts=0"),
        ({"explore": 1.5}, r"explore=1\.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPCPlugin(**wrong)


def test_a_chance_without_a_search_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"explore.*it is for plugin\.split_merge=true"):
        load(["strategy=gpc", "strategy.plugin.explore=0.1"])
