"""Settings that a strategy does not use are refused, and both ways to pick a part mean the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.config import Setup, StrategyConfig
from protocl.config.compose import load, to_yaml
from protocl.config.presets import group_names
from protocl.config.unused import settings_of
from protocl.errors import ConfigError
from protocl.registry import STRATEGIES

NEVER_UNUSED = {"name"}
pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


def settings_read(config: StrategyConfig) -> set[str]:
    """Fields that are looked at while the strategy is built."""
    from avalanche.training.plugins import EvaluationPlugin

    read: set[str] = set()

    class Watched(type(config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    backbone = build_backbone(BackboneConfig(name="mlp", width=8), (1, 4, 4), 0)
    model = Classifier(backbone, nn.Linear(backbone.feature_dim, 3))
    watched = Watched(**vars(config))
    read.clear()
    watched.build(
        Setup(model, backbone.feature_dim, 3, torch.device("cpu"), 0, [], EvaluationPlugin())
    )
    return read


@pytest.mark.parametrize("name", STRATEGIES.names())
@pytest.mark.parametrize("epochs", [None, 2])
def test_what_is_never_read_is_declared_unused(name: str, epochs: int | None) -> None:
    config = STRATEGIES.get(name)(name=name)
    if name == "aper":
        config.session = dataclasses.replace(config.session, adapt="finetune")  # has no adapters
    if epochs is not None and hasattr(config, "first_experience_epochs"):
        config.first_experience_epochs = epochs
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields - settings_read(config) - NEVER_UNUSED <= set(config.unused)
    assert set(config.unused) <= fields | set(settings_of(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("strategy=slda strategy.lr=0.1", r"lr=0\.1 has no effect"),  # the value that it has anyway
        ("strategy=slda strategy.lr=0.5", r"lr=0\.5 has no effect: strategy 'slda' .*shrinkage"),
        ("strategy=ranpac strategy.train_epochs=5", "its epochs are first_experience_epochs"),
        ("strategy=fetril strategy.train_epochs=5", "its epochs are first_experience_epochs"),
        ("strategy=nearest_mean strategy.sums.step=0.5", "only with sums.exact=true"),
        (
            "strategy=slda strategy.session.adapt=none strategy.first_experience_epochs=3",
            "trains nothing",
        ),
        ("strategy=simplecil strategy.milestones=[3]", "nothing is trained"),
        ("strategy=fetril strategy.svm_c=2 strategy.head.shrinkage=0.5", "svm_c takes its place"),
        ("strategy=fetril strategy.svm_c=2 strategy.head=ridge", "svm_c takes its place"),
        ("strategy=avalanche_ncm strategy.lr=0.5", "no gradient step"),
        ("strategy=avalanche_slda strategy.train_epochs=3", "no gradient step"),
        ("strategy=naive strategy.optimizer=adam strategy.momentum=0.5", "optimizer=adam"),
        ("strategy=naive strategy.answer=lda strategy.drift.sigma=0.5", "for drift=sdc"),
        ("strategy=pass strategy.drift=ldc strategy.drift.sigma=0.5", "for drift=sdc"),
        ("strategy=protocl strategy.plugin.temperature=3", "distillation, which is 0"),
        ("strategy=slda,ranpac strategy.lr=0.5", r"lr=0\.5 has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(["benchmark=digits", *settings.split()])


@pytest.mark.parametrize(
    "settings",
    [
        "strategy=slda strategy.first_experience_epochs=2 strategy.lr=0.5",
        "strategy=slda,naive strategy.lr=0.5",
        "strategy=slda strategy.session.adapt=none,finetune strategy.first_experience_epochs=2",
        "strategy=naive strategy.drift=none,sdc strategy.answer=lda strategy.drift.sigma=0.5",
    ],
)
def test_a_setting_that_one_of_the_runs_uses_is_none_of_them(settings: str) -> None:
    assert load(["benchmark=digits", *settings.split()])


def test_the_configuration_of_any_run_can_be_run_again(tmp_path: Path) -> None:
    """Also where a sweep gave it a setting that another strategy used."""
    for number, config in enumerate(load(["strategy=slda,naive", "strategy.lr=0.5"])):
        file = tmp_path / f"{number}.yaml"
        file.write_text(to_yaml(config))
        assert load([f"experiment={file}"]) == [config]
    with pytest.raises(ConfigError, match=r"strategy\.lr=0\.7 has no effect"):
        load([f"experiment={tmp_path / '0.yaml'}", "strategy.lr=0.7"])


@pytest.mark.parametrize("name", group_names("strategy"))
def test_both_spellings_of_a_pick_read_the_same_values(name: str, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(f"strategy: {name}\n")
    (tmp_path / "nested.yaml").write_text(f"strategy:\n  name: {name}\n")
    (tmp_path / "dotted.yaml").write_text(f"strategy.name: {name}\n")
    presets = [load([f"experiment={file}"]) for file in tmp_path.glob("*.yaml")]
    assert len(presets) == 3
    for configs in [*presets, load([f"strategy.name={name}"])]:
        assert configs == load([f"strategy={name}"])
    if name in STRATEGIES.names():
        assert presets[0][0].strategy == STRATEGIES.get(name)()


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("benchmark", "backbone") for name in group_names(group)],
)
def test_both_spellings_of_other_groups_too(group: str, name: str) -> None:
    if name == "timm":
        name = "timm/resnet18"
    picked = load(["strategy=slda", f"{group}={name}"])
    assert picked == load(["strategy=slda", f"{group}.name={name}"])


def test_coding_vectors_start_at_the_means_by_default() -> None:
    from protocl.strategies import NAPAVQPlugin

    assert NAPAVQPlugin().code_init == STRATEGIES.get("napa_vq")().plugin.code_init == "means"
    assert NAPAVQPlugin.released().code_init == "random"
    assert load(["strategy=napa_vq_released"])[0].strategy.plugin.code_init == "random"  # type: ignore[attr-defined]


def test_images_of_ones_own_get_a_trained_network_by_default() -> None:
    from protocl.federation.config.compose import load as load_federation

    for read, more in ((load, ["strategy=slda"]), (load_federation, [])):
        folder = ["benchmark=image_folder", "benchmark.path=x", *more]
        assert read(folder)[0].backbone.name == "efficientnet_lite0"
        assert read([*folder, "backbone=identity"])[0].backbone.name == "identity"
        assert read(["benchmark=digits", *more])[0].backbone.name == "identity"


def test_more_clients_than_there_are_cannot_be_waited_for() -> None:
    from protocl.federation.config.compose import load as load_federation

    with pytest.raises(ConfigError, match="min_clients=5: no round could begin with clients=4"):
        load_federation(["clients=4", "min_clients=5"])
