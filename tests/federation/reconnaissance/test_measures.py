"""What is measured in a scenario, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from protocl.federation.reconnaissance import curves
from protocl.federation.reconnaissance.curves import draw_curves, interval, series, write_curves
from protocl.federation.reconnaissance.measures import (
    BeforeMerge,
    accuracy_on,
    confusions,
    mean,
)
from protocl.federation.reconnaissance.meetings import Spread, star
from protocl.federation.reconnaissance.methods.exemplars import Exemplars
from protocl.federation.reconnaissance.methods.layer import Layer


def test_accuracy_is_on_the_classes_asked_for():
    answers, labels = torch.tensor([1, 2, 2, 5]), torch.tensor([1, 1, 2, 3])
    assert accuracy_on({1}, answers, labels) == 0.5
    assert accuracy_on({1, 2}, answers, labels) == pytest.approx(2 / 3)
    assert accuracy_on({7}, answers, labels) is None
    table = confusions([{1, 2}, {3}], answers, labels)
    assert (table[0].correct, table[0].total, table[1].correct) == (2, 3, 0)


def test_the_paper_s_mean_skips_what_is_absent():
    assert BeforeMerge(0, 0.8, None, 0.4).mean == pytest.approx(0.6)
    assert mean([None, 1.0, 0.0]) == 0.5
    assert mean([None]) is None


def test_the_interval_is_student_s():
    middle, half = interval(np.array([[1.0], [2.0], [3.0]]))
    assert middle[0] == 2
    assert half[0] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert interval(np.array([[5.0]]))[1][0] == 0


def test_series_end_with_the_shortest_run():
    def result(*values):
        return {"reconnaissance": {"steps": [{"accuracy": v} for v in values]}}

    assert series([result(0.1, 0.2), result(0.3)], "accuracy").tolist() == [[0.1], [0.3]]


def test_gossip_is_complete_when_everybody_heard_everything():
    spread = Spread(3)
    for client in range(3):
        spread.learn(client)
    spread.exchange([(0, 1)])
    assert not spread.complete
    spread.exchange([(1, 2), (0, 1)])
    assert spread.complete
    assert star(2) == [(0, -1), (1, -1), (-1, 0), (-1, 1)]


def test_averaging_weighs_a_row_by_those_who_know_its_class():
    layers = [Layer(2, 1), Layer(2, 1)]
    for layer, value in zip(layers, (1.0, 4.0), strict=True):
        layer.weights[0][:] = value
        layer.known[0] = True
    layers[1].known[1] = True
    merged = Layer(2, 1)
    merged.average(layers, [2, 1])
    assert merged.weights[0].tolist() == [[2.0], [4.0]]
    assert merged.known.tolist() == [True, True]


def test_exemplars_are_herded_within_the_budget():
    pool = Exemplars(4)
    pool.add(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([3, 3, 3]))
    pool.add(torch.tensor([[7.0], [8.0], [9.0]]), torch.tensor([1, 1, 1]))
    x, y = pool.joined_with(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    # The first is nearest to the mean 2; with the second, their mean is nearest to it.
    assert x[y == 3].flatten().tolist() == [1.0, 5.0]
    assert x[y == 1].flatten().tolist() == [8.0, 7.0]
    assert len(x) == 4
    assert pool.nbytes == 16


def result(title: str, clients: int, alone: float | None) -> dict:
    client = {"client": 0, "base": 0.9, "earlier": None, "new": 0.7}
    step = {
        **{"accuracy": 0.5, "base": 0.6, "field": 0.4, "own": 0.25, "alone": alone},
        **{"before": [client, {**client, "new": 0.5}], "bytes_up": 47_100},
    }
    return {
        "strategy": {"title": title},
        "reconnaissance": {"clients": clients, "steps": [step] * clients},
    }


def test_a_panel_that_would_be_empty_is_left_out():
    with_hermits = draw_curves({"a": [result("a", 2, 0.1)], "b": [result("b", 2, None)]})
    without = draw_curves({"a": [result("a", 2, None)]})
    # No classes are known from earlier missions either.
    assert [len(figure.axes) for figure in (with_hermits, without)] == [9, 8]
    accuracy, _, _, before, _, new, _, sent = without.axes
    assert new.lines[0].get_ydata() == pytest.approx([60.0, 60.0])
    assert before.lines[0].get_ydata() == pytest.approx([75.0, 75.0])
    assert accuracy.lines[0].get_ydata().tolist() == [50.0, 50.0]
    assert sent.yaxis.get_major_formatter()(47_100) == "47.1 kB"
    assert sent.get_ylim()[0] == 0


def test_numbers_of_clients_are_not_taken_for_repetitions(tmp_path, monkeypatch):
    folders = []
    for number, clients in enumerate((2, 2, 5)):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        content = json.dumps(result("a", clients, None))
        (folders[-1] / "result.json").write_text(content)
    drawn = []
    monkeypatch.setattr(curves, "draw_curves", lambda g: drawn.append(g) or draw_curves(g))
    (file,) = write_curves(folders, tmp_path)
    assert file.stat().st_size > 10_000
    assert {label: len(runs) for label, runs in drawn[0].items()} == {
        "a, 2 clients": 2,
        "a, 5 clients": 1,
    }
