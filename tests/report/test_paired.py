"""Differences between methods on the same seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from protocl.errors import ConfigError
from protocl.report import Comparison, compare
from tests.report.results import make_result, write_run


def _accuracies(comparison: Comparison) -> list[list[float]]:
    return [[100 * run.accuracy for run in group.runs] for group in comparison.benchmarks[0].groups]


def test_the_interval_is_that_of_a_paired_t_test(tmp_path: Path) -> None:
    for seed in (1, 2, 3, 4):
        write_run(tmp_path, make_result(strategy="good", seed=seed))
        write_run(tmp_path, make_result(strategy="bad", seed=seed, skill=0.6))
    comparison = compare([tmp_path], tmp_path / "out")
    (one,) = comparison.differences()
    best, other = _accuracies(comparison)
    expected = stats.ttest_rel(other, best).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
    assert one.mean == pytest.approx(sum(other) / 4 - sum(best) / 4)
    assert (one.label, one.reference, one.n) == ("BAD", "GOOD", 4)
    assert str(one) in (tmp_path / "out" / "table.md").read_text()
    assert "Differences on the same seeds" in (tmp_path / "out" / "report.html").read_text()


def test_only_seeds_of_both_count_and_one_is_not_enough(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, make_result(strategy="good", seed=seed))
    for seed in (2, 3, 9):
        write_run(tmp_path, make_result(strategy="bad", seed=seed, skill=0.6))
    write_run(tmp_path, make_result(strategy="single", seed=1, skill=0.3))
    (one,) = compare([tmp_path]).differences()
    assert (one.label, one.n) == ("BAD", 2)


def test_a_single_group_has_none(tmp_path: Path) -> None:
    write_run(tmp_path, make_result())
    comparison = compare([tmp_path], tmp_path / "out")
    assert comparison.differences() == []
    assert "same seeds" not in (tmp_path / "out" / "table.md").read_text()
    assert "same seeds" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["f.jpg", "f"])
def test_a_figure_says_by_its_name_what_it_is(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, make_result())
    with pytest.raises(ConfigError, match=r"\.pdf, \.svg, \.png"):
        compare([tmp_path], figure=tmp_path / name)


def test_a_figure_is_of_one_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path, make_result())
    write_run(tmp_path / "b", make_result(sizes=(3, 3)))
    with pytest.raises(ConfigError, match=r"these runs are of 2 .*name the runs of one"):
        compare([tmp_path], tmp_path / "out", figure=tmp_path / "f.svg")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_equal_runs_are_equal_figures(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, make_result())
    for name in ("a", "b"):
        compare([tmp_path], figure=tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
