"""Settings written before the parts of a method had sections of their own, under present keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from protocl.config.keys import assign, known_keys, present_key
from protocl.config.schema import StrategyConfig
from protocl.config.sections import HeadChoice
from protocl.errors import ConfigError

Settings = dict[str, Any]


def in_present_form(config: Settings, *, flat: bool) -> Settings:
    """The configuration of a run with what it says of strategy and head under present keys.

    What cannot be told, such as settings of a package that is not installed, stays as it is.

    Args:
        config: resolved, as in ``config.yaml``.
        flat: whether strategies had no sections when it was written.
    """
    changed = dict(config)
    if flat and isinstance(config.get("strategy"), dict):
        changed["strategy"] = _strategy(config["strategy"])
    if isinstance(config.get("method"), dict):
        changed["method"] = _method(config["method"])
    return changed


def _strategy(settings: Settings) -> Settings:
    try:
        present = OmegaConf.structured(StrategyConfig.named(settings["name"]))
        known = list(known_keys(present))
        assign(present, {present_key(k, known): v for k, v in _joined(settings).items()})
    except (ConfigError, KeyError):  # or a key is missing from a file that somebody edited
        return settings
    # Through JSON, as a file has lists where a schema has tuples.
    made: Settings = json.loads(json.dumps(OmegaConf.to_container(present)))
    return made


def _joined(settings: Settings) -> Settings:
    """Settings that became one, or that only one choice had."""
    joined = dict(settings)
    for first, second, both in (
        ("variance_shrinkage", "covariance_shrinkage", "head.shrinkage"),
        ("mix_least", "mix_largest", "loss.mix"),
    ):
        if first in joined:
            joined[both] = [joined.pop(first), joined.pop(second)]
    if joined.get("milestones", ()) is None:
        joined["milestones"] = []
    return joined | _fetril(joined) if "classifier" in joined else joined


def _fetril(joined: Settings) -> Settings:
    """The head that FeTrIL's classifier became; takes its settings out of ``joined``."""
    classifier = joined.pop("classifier")
    own = {"lda": joined.pop("shrinkage"), "ridge": joined.pop("regularization")}
    if classifier == "svm":
        return {}
    name = "shrinkage" if classifier == "lda" else "regularization"
    return {"head.name": classifier, f"head.{name}": own[classifier], "svm_c": None}


def _method(settings: Mapping[str, Any]) -> Settings:
    """A method whose head was a name and ``head_options``."""
    present = dict(settings)
    name, options = settings.get("head"), settings.get("head_options") or {}
    if isinstance(name, str) and isinstance(options, dict):
        present.pop("head_options", None)
        try:
            present["head"] = asdict(HeadChoice.named(name)()) | options
        except ConfigError:  # of a package that is not installed
            present["head"] = {"name": name, **options}
    return present
