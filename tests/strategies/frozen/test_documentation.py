"""``help(SLDA)`` is about SLDA: what it is, where it comes from, and each of its settings."""

from __future__ import annotations

import inspect
import pydoc
from functools import partial

import pytest

from protocl.heads import NearestMean
from protocl.registry import STRATEGIES
from protocl.strategies.frozen.documentation import with_arguments
from protocl.strategies.frozen.recipe import RecipeConfig
from protocl.strategies.ready_made.recipes import Recipe
from protocl.strategies.slda import SLDAConfig

CONFIGS = [
    config
    for config in map(STRATEGIES.get, STRATEGIES.names())
    if issubclass(config, RecipeConfig) and "recipe" in vars(config)
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.recipe.__name__)
def test_help_names_the_method_its_paper_and_every_setting(config: type[RecipeConfig]) -> None:
    strategy = config.recipe
    text = pydoc.plain(pydoc.render_doc(strategy)).partition("Method resolution order")[0]
    assert config.info.title.lower() in text.lower() or strategy.__name__ in text
    assert config.info.paper.partition(" ")[0] in text
    for setting in inspect.signature(strategy).parameters.keys() - {"settings"}:
        assert f"|      {setting}: " in text
    for shared in ("model", "first_experience_epochs", "**settings"):
        assert text.count(f"|      {shared}: ") == 1
    assert "head: turns statistics" not in text


def test_own_arguments_come_first_and_what_follows_stays() -> None:
    doc = """One line.

    More.

    Args:
        own: first,
            in two lines.
        **settings: those of another.

    Raises:
        ValueError: sometimes.
    """
    text = with_arguments(doc, partial(NearestMean, "cosine"), made="dtype")
    head, _, rest = text.partition("Args:\n")
    assert head == "One line.\n\nMore.\n\n"
    assert rest.startswith("    own: first,\n        in two lines.\n    normalize_input: ")
    assert rest.endswith("\nRaises:\n    ValueError: sometimes.\n")
    assert "metric:" not in text  # given
    assert "dtype:" not in text
    assert "another" not in text


def test_a_recipe_of_ones_own_is_documented_too() -> None:
    class Mine(Recipe):
        """Mine."""

        settings = SLDAConfig

    class Bare(Recipe):
        settings = SLDAConfig

    assert Mine.__doc__.startswith("Mine.\n\nArgs:\n    shrinkage: ")
    assert Bare.__doc__ is None
