"""Discovery as a command: its numbers are those of the parts, its refusals name what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from protocl.cli.main import main
from protocl.data import load_data
from protocl.discovering.run import DISCOVERY, accuracy_of
from protocl.errors import ConfigError, DataError
from protocl.memory import PrototypeMemory
from protocl.metrics.clusters import split_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.discovery.k_means import SemiSupervisedKMeans
from protocl.open_world.discovery.split import labelled_samples
from protocl.open_world.discovery.whitened import Whitened
from protocl.report import compare
from protocl.report.runs import load_run
from protocl.runner.folders import open_run

SMALL = ["benchmark=digits", "backbone=identity", "known_classes=6", "restarts=2", "tracker=[]"]


def discover(tmp_path: Path, *words: str) -> dict:
    (config,) = DISCOVERY.load([*SMALL, f"output={tmp_path}", *words])
    return DISCOVERY.carry_out(config, open_run(config))


def test_it_is_the_parts_in_their_order(tmp_path):
    (config,) = DISCOVERY.load([*SMALL, f"output={tmp_path}"])
    result = DISCOVERY.carry_out(config, open_run(config))
    data = load_data(config.benchmark)
    x, y = data.x_train.flatten(1).to(torch.float32), data.y_train
    x = x / 255 if data.x_train.dtype == torch.uint8 else x
    labelled = labelled_samples(y, torch.arange(6))
    space = Whitened.of(PrototypeMemory(64, "shared").update(x[labelled], y[labelled]), 0.1)
    known = PrototypeMemory(64, feature_map=space).update(x[labelled], y[labelled])
    found = SemiSupervisedKMeans(10, restarts=2, spherical=True).fit(known, x[~labelled])
    table = Confusion.from_predictions(y[~labelled], found.predict(space(x[~labelled])))
    assert Confusion.from_dict(result["discovery"]["table"]) == table
    assert accuracy_of(result) == split_accuracy(table, range(6))
    assert accuracy_of(result).all > 0.7
    assert result["discovery"]["labelled"] + result["discovery"]["unlabelled"] == len(y)


def test_the_estimate_keeps_its_curve(tmp_path):
    found = discover(tmp_path, "categories=estimated", "estimate_samples=300", "tries=5")
    curve = found["discovery"]["tried"]
    assert curve[found["discovery"]["categories"]] == max(curve.values())
    assert 2 <= len(curve) <= 5


@pytest.mark.parametrize(
    "words", [("whitening=null", "map=unit"), ("whitening=null", "spherical=false"),
              ("map=tukey:power=0.5", "labelled=0.1", "categories=7")],
)  # fmt: skip
def test_other_spaces(tmp_path, words):
    found = discover(tmp_path, *words)["discovery"]
    assert 0.3 < found["accuracy"]["all"] <= 1
    assert found["categories"] == (7 if "categories=7" in words else 10)


def test_the_command_prints_its_table_and_goes_into_no_comparison(tmp_path, capsys):
    assert main(["discover", *SMALL, "known_classes=10", f"output={tmp_path}"]) == 0
    assert "categories discovered" in capsys.readouterr().out
    (file,) = tmp_path.rglob("result.json")
    assert json.loads(file.read_text())["discovery"]["accuracy"]["new"] is None
    with pytest.raises(DataError, match="a discovery of categories, which has no answers"):
        load_run(file.parent)
    with pytest.raises(DataError):
        compare([file.parent], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("known_classes=11",), "known_classes=11: expected at most the 10 classes"),
        (("labelled=0",), "labelled=0.0 leaves a known class"),
        (("categories=5",), "categories=5: expected at least the 6 known"),
        (("categories=0",), "categories=0"),
        (("categories=5000",), "categories=5000: expected at most"),
        (("map=pca",), "pca"),
        (("categories=estimated", "most=1"), "most=1 times 6 known classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        discover(tmp_path, *words)
