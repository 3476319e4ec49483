"""``protocl reconnaissance`` on digits: exact merging, honest bookkeeping, repeatable scenarios."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.cli.main import main
from protocl.config.sections import HeadChoice
from protocl.data import BenchmarkConfig, load_data
from protocl.errors import ConfigError, DataError
from protocl.federation.reconnaissance.pictures import draw_prototypes
from protocl.federation.reconnaissance.run import (
    RECONNAISSANCE,
    Reconnaissance,
    run_reconnaissance,
)
from protocl.federation.reconnaissance.scenario import SERVER, Scenario
from protocl.federation.server.state import same_statistics
from protocl.registry import HEADS, SCORES
from protocl.report import load_run
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run
from protocl.runner.progress import Progress


def start(tmp_path, *words: str) -> Reconnaissance:
    (config,) = RECONNAISSANCE.load(["reconnaissance=digits", f"output={tmp_path}", *words])
    return Reconnaissance(RunContext("reconnaissance", config, open_run(config)))


def finish(tmp_path, *words: str):
    run = start(tmp_path, *words)
    return run, run.finish()


def in_one_place(run: Reconnaissance, head: str):
    rows = [*run.scenario.base_rows, *(row for m in run.scenario.missions for row in m.rows)]
    rows = torch.tensor(rows)
    memory = HEADS.get(head)().new_memory(run.x.shape[1], exact=True)
    return memory.update(run.x[rows], run.y[rows])


@pytest.mark.parametrize("head", ["nearest_mean", "lda"])
@pytest.mark.parametrize("schedule", ["disjoint", "overlapping", "handover"])
def test_a_star_equals_one_place_bit_for_bit(tmp_path, head, schedule):
    run, result = finish(
        tmp_path, f"method.head={head}", f"scenario.schedule={schedule}", "scenario.every=2"
    )
    pooled = in_one_place(run, head)
    for node in (SERVER, *run.clients):
        assert same_statistics(run.learner.memory(node), pooled)
    classifier = HEADS.get(head)().fit(pooled)
    accuracy = float((classifier.predict(run.x_test) == run.y_test).double().mean())
    assert result["metrics"]["last_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert result["reconnaissance"]["steps"][-1]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_gossip_ends_at_the_bits_of_the_star_and_passes_each_contribution_on_once(tmp_path):
    words = ("scenario.clients=5", "scenario.schedule=overlapping")
    star, _ = finish(tmp_path, *words)
    gossip, result = finish(tmp_path, *words, "scenario.merge=gossip")
    assert not gossip.scenario.has_server
    assert [m.rows for m in gossip.scenario.missions] == [m.rows for m in star.scenario.missions]
    for client in gossip.clients:
        assert same_statistics(gossip.learner.memory(client), star.learner.memory(SERVER))
    # Everybody makes its own contributions and hears of each other's exactly once.
    made = sum(1 for _ in gossip.scenario.missions)
    heard = sum(len(a) for n in gossip.learner.nodes.values() for a in n.letters.values())
    assert heard == 1 + 5 * (made + 1)  # the server told its base once to everyone
    assert len(result["reconnaissance"]["steps"]) >= len(star.scenario.steps)


def test_every_sample_is_on_one_mission(tmp_path):
    for schedule in ("disjoint", "overlapping", "handover"):
        run = start(tmp_path, f"scenario.schedule={schedule}", "scenario.skew=0.3")
        rows = [row for m in run.scenario.missions for row in m.rows]
        field = sorted(set(range(10)) - run.base)
        assert len(rows) == len(set(rows))
        taught = torch.isin(run.y[: len(run.y) - 450], torch.tensor(field))  # 450 are for the test
        assert sorted(rows) == taught.nonzero().flatten().tolist()


def test_a_class_is_handed_over_to_another_client(tmp_path):
    run = start(tmp_path, "scenario.schedule=handover")
    half = len(run.scenario.steps) // 2
    first, later = (
        {c: m.client for step in part for m in step.missions for c in run._labels(m).tolist()}
        for part in (run.scenario.steps[:half], run.scenario.steps[half:])
    )
    assert first.keys() == later.keys()
    assert all(first[c] != later[c] for c in first)


def test_random_missions_collide_and_never_repeat_an_image(tmp_path):
    run = start(
        tmp_path, "scenario.schedule=random", "scenario.samples_per_class=10",
        "scenario.classes_per_mission=3",
    )  # fmt: skip
    rows = [row for m in run.scenario.missions for row in m.rows]
    assert len(rows) == len(set(rows))
    assert all(len(m.rows) == 30 for m in run.scenario.missions)
    first = [set(run._labels(m).tolist()) for m in run.scenario.steps[0].missions]
    assert sum(map(len, first)) > len(set().union(*first))


def test_redrawing_changes_sides_but_not_numbers(tmp_path):
    kept, drawn = start(tmp_path), start(tmp_path, "scenario.redraw=true")
    assert len(kept.scenario.test_rows) == len(drawn.scenario.test_rows)
    assert set(kept.scenario.test_rows) != set(drawn.scenario.test_rows)
    rows = {*drawn.scenario.base_rows, *(r for m in drawn.scenario.missions for r in m.rows)}
    assert not rows & set(drawn.scenario.test_rows)


def test_a_saved_scenario_gives_the_same_run(tmp_path):
    run, result = finish(tmp_path, "scenario.schedule=overlapping", "seed=3")
    file = run.run.folder / "scenario.json"
    assert Scenario.load(file) == run.scenario
    _, again = finish(tmp_path, f"scenario.file={file}", "seed=3")
    assert again["metrics"] == result["metrics"]
    assert again["confusion"] == result["confusion"]


def test_a_scenario_of_other_data_is_refused(tmp_path):
    run = start(tmp_path)
    run.scenario.save(tmp_path / "scenario.json")
    with pytest.raises(DataError, match="other data"):
        start(
            tmp_path, f"scenario.file={tmp_path / 'scenario.json'}", "benchmark.train_per_class=5"
        )


def test_merging_gains_over_learning_alone_and_bytes_are_counted(tmp_path):
    run, result = finish(tmp_path)
    steps = result["reconnaissance"]["steps"]
    assert steps[-1]["accuracy"] > steps[-1]["alone"] + 0.2
    assert steps[-1]["classes"] == 10
    assert steps[0]["before"][0]["earlier"] is None
    # A mission of one class: 64 sums of at most 4 bytes, two int64, and the description.
    assert 3 * 200 < steps[0]["bytes_up"] < 3 * 1200
    assert steps[0]["bytes_down"] == pytest.approx(2 * steps[0]["bytes_up"], rel=0.2)
    assert load_run(run.run.folder).stream_accuracy[-1] == pytest.approx(
        steps[-1]["accuracy"], abs=1e-6
    )


def test_linear_methods_order_as_they_should(tmp_path):
    last = {}
    for method in ("joint", "exemplars", "icarl", "fedavg", "finetune"):
        _, result = finish(tmp_path, f"method={method}", "alone=false")
        last[method] = result["metrics"]["last_accuracy"]
    assert last["joint"] > 0.9
    assert last["joint"] >= last["exemplars"] - 0.02
    keeping = min(last["joint"], last["exemplars"], last["icarl"])
    assert keeping > max(last["fedavg"], last["finetune"]) + 0.2


def test_linear_methods_refuse_gossip(tmp_path):
    with pytest.raises(ConfigError, match="needs a server"):
        finish(tmp_path, "method=fedavg", "scenario.merge=gossip")


def test_unknown_classes_score_lower(tmp_path):
    _, result = finish(
        tmp_path, "method.head=bayesian", "unknown=true", "scenario.clients=1", "alone=false"
    )
    steps = result["reconnaissance"]["steps"]
    assert {"distance", "bayesian", "log_density"} <= set(steps[0]["unknown"])
    assert steps[0]["unknown"]["distance"] > 0.8
    assert steps[-1]["unknown"] == {}  # nothing is unknown any more


def test_all_scores_where_the_memory_keeps_second_moments(tmp_path):
    _, result = finish(tmp_path, "unknown=true", "method.level=shared", "scenario.merge=gossip")
    first, *_, last = result["reconnaissance"]["steps"]
    assert set(first["unknown"]) == set(first["detection"]) == set(SCORES.names())
    found = first["detection"]["relative_mahalanobis"]
    assert found["auroc"] == first["unknown"]["relative_mahalanobis"] > 0.8
    assert 0 < found["fpr95"] < 1
    assert last["detection"] == {}
    with pytest.raises(ConfigError, match=r"method.level=mean: the head lda needs level shared"):
        finish(tmp_path, "method.head=lda", "method.level=mean")


def test_the_command_writes_curves_over_seeds(tmp_path, capsys):
    words = ["reconnaissance=digits", "method=prototypes,joint", "seed=1,2", f"output={tmp_path}"]
    assert main(["reconnaissance", *words, "alone=false"]) == 0
    assert list(tmp_path.glob("*/reconnaissance.png"))
    results = [json.loads(f.read_text()) for f in tmp_path.glob("*/*/result.json")]
    assert len(results) == 4
    assert np.isfinite([r["metrics"]["forgetting"] for r in results]).all()


def test_a_finished_run_is_not_repeated(tmp_path):
    (config,) = RECONNAISSANCE.load(["reconnaissance=digits", f"output={tmp_path}", "alone=false"])
    folder = open_run(config)
    first = run_reconnaissance(config, folder)
    seen: list[Progress] = []
    again = run_reconnaissance(config, folder, on_progress=seen.append)
    assert again == json.loads(json.dumps(first))
    assert not seen


@pytest.mark.parametrize(
    "words",
    [
        ["scenario.schedule=never"],
        ["scenario.merge=ring"],
        ["scenario.clients=0"],
        ["scenario.schedule=overlapping", "scenario.holders=9"],
        ["benchmark.base_classes=10"],
        ["scenario.skew=-1"],
    ],
)
def test_impossible_scenarios_are_refused(tmp_path, words):
    with pytest.raises(ConfigError, match=r"expected|fewer"):
        start(tmp_path, *words)


def test_the_backbone_names_the_statistics(tmp_path):
    run, _ = finish(tmp_path, "alone=false")
    data = load_data(BenchmarkConfig(name="digits"))
    assert run.fingerprint == fingerprint(build_backbone(BackboneConfig(), data.input_shape, 0))
    assert run.learner.memory(SERVER).fingerprint == run.fingerprint


def test_prototypes_of_nodes_that_agree_lie_on_each_other(tmp_path):
    run, _ = finish(tmp_path, "alone=false")
    nodes = {f"client {c}": run.learner.memory(c) for c in run.clients}
    (axes,) = draw_prototypes({"after": nodes}).axes
    first, *others = (collection.get_offsets() for collection in axes.collections)
    assert len(first) == 10
    assert all(np.allclose(first, other) for other in others)
    with pytest.raises(ValueError, match="at least 2"):
        draw_prototypes({"before": {"client 0": run.learner.empty}})


def test_another_head_does_not_take_over_the_options_of_the_presets():
    words = ["reconnaissance=omniglot_stream"]
    (own,) = RECONNAISSANCE.load([*words, "method.head=nearest_mean"])
    assert own.method.head.build().metric == "cosine"
    (other,) = RECONNAISSANCE.load([*words, "method.head=lda"])
    assert other.method.head == HeadChoice.named("lda")()
    (given,) = RECONNAISSANCE.load([*words, "method.head=lda", "method.head.shrinkage=0.3"])
    assert given.method.head.build().shrinkage == 0.3
