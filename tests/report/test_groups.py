"""Grouping over seeds, and the names that groups get."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocl.config.arguments import expand, typed_values
from protocl.config.compose import compose
from protocl.config.former import in_present_form
from protocl.config.sections import HeadChoice
from protocl.report.groups import Group, differences, group_runs
from protocl.report.runs import load_runs
from tests.report.results import make_result, write_run


def test_seeds_of_one_configuration_form_a_group(tmp_path: Path) -> None:
    for seed in (3, 1, 2):
        write_run(tmp_path, make_result("slda", seed))
    write_run(tmp_path, make_result("naive", 1, skill=0.3))
    benchmarks, repeated = group_runs(load_runs([tmp_path])[0])
    assert [benchmark.label for benchmark in benchmarks] == ["digits B0-Inc2"]
    slda, naive = benchmarks[0].groups
    assert (slda.label, slda.seeds) == ("SLDA", [1, 2, 3])
    assert (naive.label, naive.seeds) == ("NAIVE", [1])
    assert repeated == []
    path = slda.first.path / "config.yaml"
    assert slda.command() == f"protocl run experiment={path} seed=1,2,3"


def test_means_are_over_seeds(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, make_result("slda", seed))
    runs, _ = load_runs([tmp_path])
    (group,) = group_runs(runs)[0][0].groups
    values = [run.stream_accuracy[1] for run in runs]
    assert group.curve()[1].mean == pytest.approx(sum(values) / 3)
    cells = [run.accuracy_matrix[2][1] for run in runs]
    assert group.mean_accuracy_matrix()[2][1] == pytest.approx(sum(cells) / 3)


def test_another_setting_makes_another_group_named_by_it(tmp_path: Path) -> None:
    write_run(tmp_path, make_result("slda", 1), shrinkage=0.1)
    write_run(tmp_path, make_result("slda", 1), time="20260101-000001", shrinkage=0.2)
    groups = group_runs(load_runs([tmp_path])[0])[0][0].groups
    assert sorted(group.label for group in groups) == ["SLDA, shrinkage=0.1", "SLDA, shrinkage=0.2"]
    assert set(differences(groups)) == {"strategy.shrinkage"}


def test_a_label_names_no_settings_of_heads_that_another_run_does_not_have(tmp_path: Path) -> None:
    heads = (
        {"name": "klda", "gamma": 1},
        {"name": "klda", "gamma": 2},
        {"name": "anacp", "dim": 5},
    )
    for second, head in enumerate(heads):
        write_run(tmp_path, make_result("slda", 1), time=f"20260101-00000{second}", head=head)
    groups = group_runs(load_runs([tmp_path])[0])[0][0].groups
    labels = ["SLDA, head=anacp", "SLDA, head=klda, gamma=1", "SLDA, head=klda, gamma=2"]
    assert sorted(group.label for group in groups) == labels


FLAT = {
    "slda": {"shrinkage": 0.1, "priors": "uniform", "adapt": None, "adapt_classifier": "linear",
             "exact": False, "step": 2.0**-16, "milestones": None},
    "fecam": {"variance_shrinkage": 1.0, "covariance_shrinkage": 2.0, "tukey": None},
    "napa_vq": {"k": 3, "temperature": 0.2, "mix_least": 0.5, "mix_largest": 1.0, "drift": "sdc",
                "drift_sigma": 0.5, "code_lr": 4.0},
    "fetril": {"classifier": "ridge", "regularization": 3.0, "shrinkage": "auto", "svm_c": 1.0},
    "prd": {"temperature": 0.2, "projector_hidden": 64, "base_temperature": None},
    "naive": {"answer": "lda", "drift": "none", "drift_sigma": 0.3},
}  # fmt: skip
NESTED = {
    "slda": ["head.shrinkage=0.1"],
    "fecam": ["head.shrinkage=[1.0,2.0]", "head.tukey=null"],
    "napa_vq": ["loss.k=3", "loss.temperature=0.2", "loss.mix=[0.5,1.0]", "drift=sdc",
                "drift.sigma=0.5", "plugin.code_lr=4.0"],
    "fetril": ["head=ridge", "head.regularization=3.0"],
    "prd": ["loss.temperature=0.2", "projector.hidden=64", "loss.base_temperature=null"],
    "naive": ["answer=lda", "drift.sigma=0.3"],
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_a_run_of_format_1_is_in_one_group_with_its_like_of_today(
    tmp_path: Path, name: str
) -> None:
    settings = [f"strategy.{word}" for word in NESTED[name]]
    (now,) = expand(typed_values([f"strategy={name}", *settings]))
    today = asdict(compose(now).strategy)
    flat = {key: today[key] for key in ("train_epochs", "lr", "momentum", "weight_decay")}
    before = write_run(
        tmp_path, {**make_result(name, 1), "format": 1}, **{**today, **flat, **FLAT[name]}
    )
    file = before / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for section in [key for key, value in config["strategy"].items() if isinstance(value, dict)]:
        del config["strategy"][section]
    file.write_text(yaml.safe_dump(config))
    write_run(tmp_path, make_result(name, 2), **json.loads(json.dumps(today)))
    (benchmark,) = group_runs(load_runs([tmp_path])[0])[0]
    assert [group.seeds for group in benchmark.groups] == [[1, 2]]
    assert not differences([Group([run]) for run in benchmark.groups[0].runs])


def test_a_federations_head_of_before_is_that_of_today(tmp_path: Path) -> None:
    for seed, method in enumerate(
        (
            {"name": "prototypes", "head": "lda", "head_options": {"shrinkage": 0.1}},
            {"name": "prototypes", "head": asdict(HeadChoice.named("lda", shrinkage=0.1)())},
        )
    ):
        folder = write_run(tmp_path, make_result("prototypes", seed))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "method": method}))
    ((group,),) = [one.groups for one in group_runs(load_runs([tmp_path])[0])[0]]
    assert group.seeds == [0, 1]
    assert group.settings["method.head.name"] == "lda"


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": {"name": "not_installed", "shrinkage": 0.1}},
        {"strategy": {"shrinkage": 0.1}},
        {"strategy": {"name": "fetril", "classifier": "lda"}},
        {"strategy": {"name": "fecam", "variance_shrinkage": 1.0}},
        {"strategy": {"name": "slda", "colour": "red"}},
        {"strategy": {}, "method": "prototypes"},
        {"method": {"name": "prototypes", "head": "lda", "head_options": [1]}},
        {},
    ],
)
def test_what_cannot_be_told_of_a_former_configuration_stays(config: dict[str, Any]) -> None:
    assert in_present_form(config, flat=True) == config


def test_a_label_says_so_much_of_a_key_that_no_other_is_meant(tmp_path: Path) -> None:
    for seed, temperature in ((1, 0.1), (2, 0.2)):
        loss, plugin = {"temperature": temperature}, {"temperature": 3, "sharp": temperature}
        other = {"head": {"name": f"head{seed}"}}
        write_run(tmp_path, make_result("x", seed), loss=loss, plugin=plugin, **other)
    groups = group_runs(load_runs([tmp_path])[0])[0][0].groups
    assert sorted(group.label for group in groups) == [
        f"X, head=head{n}, loss.temperature=0.{n}, sharp=0.{n}" for n in (1, 2)
    ]


def test_another_split_is_another_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path, make_result("slda", 1))
    write_run(tmp_path, make_result("slda", 2, sizes=(4, 1, 1)))
    write_run(tmp_path, make_result("slda", 3, sizes=(1, 2, 3)))
    labels = [benchmark.label for benchmark in group_runs(load_runs([tmp_path])[0])[0]]
    assert labels == ["digits 3 unequal experiences", "digits B0-Inc2", "digits B4-Inc1"]


def test_of_two_runs_of_one_seed_the_newer_counts(tmp_path: Path) -> None:
    old = write_run(tmp_path, make_result("slda", 1), time="20260101-000000")
    new = write_run(tmp_path, make_result("slda", 1), time="20260102-000000")
    benchmarks, repeated = group_runs(load_runs([tmp_path])[0])
    assert [run.path for run in benchmarks[0].groups[0].runs] == [new]
    assert [one.path for one in repeated] == [old]
    assert f"same configuration and seed 1 as the newer {new}" in repeated[0].reason


def test_different_data_under_one_configuration_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path, make_result("slda", 1))
    other = make_result("slda", 2)
    other["benchmark"]["data_hash"] = "something else"
    write_run(tmp_path, other)
    (group,) = group_runs(load_runs([tmp_path])[0])[0][0].groups
    assert group.notes == ["the seeds of this group saw different data (benchmark.data_hash)"]


def test_runs_without_a_config_are_grouped_by_their_names(tmp_path: Path) -> None:
    for seed in (1, 2):
        (write_run(tmp_path, make_result("slda", seed)) / "config.yaml").unlink()
    (group,) = group_runs(load_runs([tmp_path])[0])[0][0].groups
    assert group.seeds == [1, 2]
    assert "config.yaml is missing" in group.notes[0]
    expected = "protocl run benchmark=digits strategy=slda backbone=identity seed=1,2"
    assert group.command() == expected


def test_weights_that_each_seed_trained_for_itself_make_one_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, make_result("slda", seed), checkpoint=f"/w/{seed}/backbone.safetensors")
        write_run(tmp_path, make_result("slda", seed), time="20260101-000001")
    own, plain = sorted(
        group_runs(load_runs([tmp_path])[0])[0][0].groups, key=lambda group: group.label
    )
    assert (own.label, own.seeds) == ("SLDA, checkpoint=None", [1, 2])
    assert (plain.label, plain.seeds) == ("SLDA, checkpoint=each seed's own", [1, 2])
    assert own.command().count("\n") == 0
    assert plain.command().splitlines() == [
        f"protocl run experiment={run.path / 'config.yaml'} seed={run.seed}" for run in plain.runs
    ]


def test_weights_that_are_compared_on_one_seed_stay_apart(tmp_path: Path) -> None:
    for name, seeds in (("short", (1, 2)), ("long", (1,))):
        for seed in seeds:
            file = f"/runs/pretrain/{name}/backbone.safetensors"
            write_run(tmp_path, make_result("slda", seed), time=f"20260101-{name}", checkpoint=file)
    groups = group_runs(load_runs([tmp_path])[0])[0][0].groups
    assert sorted(group.label for group in groups) == [
        "SLDA, checkpoint=long",
        "SLDA, checkpoint=short",
    ]
