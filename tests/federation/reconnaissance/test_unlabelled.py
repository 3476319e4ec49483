"""Missions without labels: what is drawn, found, agreed on and named."""

from __future__ import annotations

import pytest
import torch

from protocl.errors import ConfigError
from protocl.federation.reconnaissance.discovered import KNOWN, Discoveries, Finding
from protocl.federation.reconnaissance.scenario import SERVER, Scenario
from tests.federation.reconnaissance.test_reconnaissance import finish, start

DISCOVER = (
    "benchmark.base_classes=6", "method.level=shared", "scenario.classes_per_mission=2",
    "scenario.schedule=overlapping", "scenario.unlabelled=1.0", "alone=false",
    "method.discovery.offset=-30", "scenario.samples_per_class=30",
)  # fmt: skip


BESIDE = ("named", "after_naming", "labelled")


def last(result):
    return result["reconnaissance"]["steps"][-1]


def test_star_and_gossip_end_at_the_same_categories(tmp_path):
    star, first = finish(tmp_path / "star", *DISCOVER)
    gossip, second = finish(tmp_path / "gossip", *DISCOVER, "scenario.merge=gossip")
    here, there = star.learner.aliases(SERVER), gossip.learner.aliases(0)
    assert here == there
    assert len(here.category) > 4
    assert all(gossip.learner.aliases(client) == there for client in range(3))
    assert last(first)["discovery"]["classes"] == 4
    assert last(first)["discovery"]["new"] > 0.5
    assert last(first)["discovery"] == last(second)["discovery"]


def test_what_is_too_small_to_be_sent_can_go_to_larger_groups(tmp_path):
    all_new = (*DISCOVER, "method.discovery.detect=false", "method.discovery.offset=0")
    some, _ = finish(tmp_path / "some", *all_new)
    every, _ = finish(tmp_path / "every", *all_new, "method.discovery.dissolve=true")
    left_out = [
        sum(int((finding.rows < 0).sum()) for finding in run.discoveries.findings)
        for run in (some, every)
    ]
    assert left_out[0] > left_out[1] == 0


def test_labels_are_taken_from_the_share_asked_for_and_nothing_else_is_drawn(tmp_path):
    words = ("benchmark.base_classes=4", "scenario.samples_per_class=20")
    whole = start(tmp_path, *words).scenario
    half = start(tmp_path, *words, "scenario.unlabelled=0.25").scenario
    for all_, some in zip(whole.missions, half.missions, strict=True):
        assert set(some.rows) | set(some.unlabelled) == set(all_.rows)
        assert len(some.unlabelled) == 5 * len(all_.rows) // 20
    half.save(tmp_path / "s.json")
    assert Scenario.load(tmp_path / "s.json") == half
    assert whole.base_rows == half.base_rows


def test_samples_of_known_classes_come_back_without_labels(tmp_path):
    run, result = finish(tmp_path, *DISCOVER, "scenario.revisited=20", "scenario.base_samples=60")
    labels = run.y[torch.tensor([r for m in run.scenario.missions for r in m.unlabelled])]
    assert int(torch.isin(labels, torch.tensor(sorted(run.base))).sum()) == 120
    assert len(run.scenario.base_rows) == 360
    found = result["reconnaissance"]["steps"][0]["discovery"]
    assert found["kept_known"] > 0.85
    assert found["flagged_new"] > 0.3
    with pytest.raises(ConfigError, match="revisited=500"):
        start(tmp_path, *DISCOVER, "scenario.revisited=500")


def test_names_told_later_are_known_to_all(tmp_path):
    run, result = finish(
        tmp_path, *DISCOVER, "scenario.named_after=1", "method.discovery.detect=false",
        "method.discovery.absorb=.inf", "scenario.classes_per_mission=1",
    )  # fmt: skip
    steps = result["reconnaissance"]["steps"]
    assert steps[0]["classes"] == 6
    assert steps[-1]["classes"] > 8
    assert steps[-1]["field"] > 0.6
    assert run.learner.namings[SERVER].names
    assert [steps[0]["discovery"][key] for key in BESIDE] == [0, None, None]
    found = steps[-1]["discovery"]
    asked = torch.isin(run.y_test, torch.tensor(sorted(run.discoveries.named)))
    x, y = run.x_test[asked], run.y_test[asked]
    for learner, key in ((run.learner, "after_naming"), (run.discoveries.twin, "labelled")):
        right = (learner.predict_openly(SERVER, x) == y).double().mean()
        assert found[key] == pytest.approx(float(right))
    assert found["named"] == len(y.unique()) >= 3
    assert found["labelled"] > 0.85  # its memory has the labels of all that came without
    unlabelled = sum(len(mission.unlabelled) for mission in run.scenario.missions)
    base = len(run.scenario.base_rows)
    assert run.discoveries.twin.memory(SERVER).total == base + unlabelled
    assert run.learner.memory(SERVER).total == base


def test_a_run_goes_on_with_what_was_found(tmp_path):
    _, whole = finish(tmp_path / "whole", *DISCOVER)
    run = start(tmp_path / "rest", *DISCOVER)
    step, taken = run._take, []

    def stop(*words):
        if taken:
            raise KeyboardInterrupt
        taken.append(step(*words))

    run._take = stop
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    from protocl.federation.reconnaissance.run import Reconnaissance

    run.config.resume = True
    again = Reconnaissance(run.run).finish()
    assert last(again)["discovery"] == last(whole)["discovery"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method=fedavg",), "learns nothing from samples without labels"),
        (("method.level=null",), "method.level=shared"),
        (("method.discovery.offset=null",), r"discovery.offset=-100"),
        (("method.discovery.offset=.nan",), "discovery.offset=nan: expected a log odds ratio"),
        (("method.discovery.absorb=.nan",), "discovery.absorb=nan: expected a log odds ratio"),
        (("benchmark.base_classes=0",), "nobody has been taught|second moments|level=shared"),
    ],
)
def test_what_is_refused_says_what_to_do(tmp_path, words, message):
    given = [
        word for word in DISCOVER if word.split("=")[0] not in {w.split("=")[0] for w in words}
    ]
    if words == ("method=fedavg",):
        given = [word for word in given if not word.startswith("method.")]
    with pytest.raises((ConfigError, ValueError), match=message):
        finish(tmp_path, *given, *words)


def test_a_row_is_called_as_most_of_its_samples():
    finding = Finding(1, 0, torch.tensor([7, 7, 7, 9, 9, KNOWN]), torch.tensor([3, 3, 1, 5, 4, 8]))
    assert finding.names() == {7: 3, 9: 4}
    discoveries = Discoveries()
    discoveries.note(finding, torch.zeros(len(finding.labels), 1))
    assert discoveries.met == {1, 3, 4, 5, 8}
