"""Pictures of categories show what they were given, in any script and any number."""

from __future__ import annotations

import pytest

from protocl.report.categories import (
    COLOURS,
    CategoryLife,
    FoundRow,
    alias_graph,
    category_map,
    reliability,
    unknown_reliability,
)
from protocl.report.plots import png


def test_a_map_has_a_line_a_category_and_a_stretch_a_state():
    lives = [
        CategoryLife("otter", [(0, "known")]),
        CategoryLife("かわうそ $x$", [(2, "discovered"), (4, "named")]),
        CategoryLife("new:3", [(1, "discovered"), (3, "merged")]),
    ]
    figure = category_map(lives, 6)
    (axes,) = figure.axes
    stretches = [line for line in axes.lines if len(line.get_xdata()) == 2]
    found = [(list(line.get_xdata()), line.get_color(), line.get_ydata()[0]) for line in stretches]
    assert found == [
        ([0, 6], COLOURS["known"], 0),
        ([2, 4], COLOURS["discovered"], -1),
        ([4, 6], COLOURS["named"], -1),
        ([1, 3], COLOURS["discovered"], -2),
    ]
    assert axes.get_yticklabels()[0].get_text() == "otter"
    assert png(figure).startswith(b"\x89PNG")


def test_many_categories_are_counted_rather_than_named():
    figure = category_map([CategoryLife(str(n), [(n % 5, "discovered")]) for n in range(300)], 5)
    assert figure.axes[0].get_ylabel() == "300 categories"
    assert figure.get_figheight() < 20


def test_a_score_is_as_true_as_its_bins():
    scores = [0.05] * 10 + [0.55] * 4 + [1.0] * 2
    truth = [False] * 9 + [True] + [True, False] * 2 + [True] * 2
    assert reliability(scores, truth) == [
        (pytest.approx(0.05), 0.1, 10), (pytest.approx(0.55), 0.5, 4), (1.0, 1.0, 2)
    ]  # fmt: skip
    axes = unknown_reliability(scores, truth).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [
        [pytest.approx(p), q] for p, q, _ in reliability(scores, truth)
    ]


def test_rows_of_one_category_are_joined():
    rows = {"a:0": FoundRow("a", 9), "b:0": FoundRow("b", 4), "b:1": FoundRow("b", 1)}
    figure = alias_graph(rows, {"a:0": "otter", "b:0": "otter", "b:1": "b:1"})
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["otter", "b:1"]
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0, 1]
    sizes = [collection.get_sizes().tolist() for collection in axes.collections]
    assert sizes[0][0] > sizes[0][1] > sizes[1][0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no category to show"):
        category_map([], 1)
    with pytest.raises(ValueError, match="ascending"):
        CategoryLife("x", [(3, "known"), (1, "named")])
    with pytest.raises(ValueError, match="state 'lost'"):
        CategoryLife("x", [(3, "lost")])
    with pytest.raises(ValueError, match="2 scores, 1 truths"):
        reliability([0.1, 0.2], [True])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        reliability([1.2], [True])
    with pytest.raises(ValueError, match="no row to show"):
        alias_graph({}, {})
    with pytest.raises(ValueError, match=r"rows \['a'\] have no category"):
        alias_graph({"a": FoundRow("c", 1)}, {})
