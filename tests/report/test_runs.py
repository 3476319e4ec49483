"""Reading results: what is found, and what is refused with which reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocl.errors import DataError
from protocl.report import Run, compare, load_run, load_runs
from protocl.report.result import KINDS, Result, upgraded
from tests.report.results import make_result, write_run


def test_a_written_run_is_read_back(tmp_path: Path) -> None:
    result = make_result(seed=3)
    run = load_run(write_run(tmp_path, result, shrinkage=0.5))
    assert run.seed == 3
    assert run.complete
    assert run.accuracy_matrix == result["metrics"]["accuracy_matrix"]
    assert run.confusion.counts == result["confusion"]["counts"]
    assert run.classes_seen == [2, 4, 6]
    assert run.seconds == 3.5
    assert run.peak_mib == 202.0
    assert run.config["strategy"]["shrinkage"] == 0.5
    assert (run.class_name(0), run.class_name(99)) == ("<0>", "99")


def test_runs_are_found_through_every_kind_of_path(tmp_path: Path) -> None:
    first = write_run(tmp_path, make_result(seed=1))
    second = write_run(tmp_path, make_result(seed=2))
    for paths in (
        [tmp_path],
        [str(tmp_path / "**" / "result.json")],
        [tmp_path / "digits-*" / "*-[12]"],
        [first, second, tmp_path],
        [first / "result.json", second / "config.yaml"],
    ):
        runs, skipped = load_runs(paths)
        assert [run.path for run in runs] == [first, second]
        assert skipped == []


def edit(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    result = copy.deepcopy(make_result())
    change(result)
    return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=3), "format is 3, but this version of protocl reads 1 to 2"),
        (lambda r: r.pop("seed"), "^seed is missing"),
        (lambda r: r.update(seed="1"), "seed should be a valid integer, but is '1'"),
        (lambda r: r.update(seed=True), "seed should be a valid integer, but is True"),
        (lambda r: r.pop("benchmark"), "^benchmark is missing"),
        (lambda r: r["strategy"].pop("keeps_data"), "strategy.keeps_data is missing"),
        (
            lambda r: r["metrics"]["stream_accuracy"].__setitem__(1, None),
            r"metrics.stream_accuracy\[1\] should be a valid number, but is None",
        ),
        (lambda r: r["metrics"]["accuracy_matrix"].pop(), "2 rows of accuracy_matrix and 3"),
        (lambda r: r["metrics"]["accuracy_matrix"][1].pop(), r"row 1 must hold .* got 1"),
        (lambda r: r["metrics"].update(forgetting=0.9), "metrics.forgetting is 0.9, but"),
        (lambda r: r["confusion"]["counts"].pop(), "counts should be 6 x 6"),
        (lambda r: r["phases"][0].pop("seconds"), r"phases\[0\].seconds is missing"),
    ],
)
def test_a_damaged_result_is_refused_by_the_name_of_its_field(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Run.from_result(edit(change), Path("run"))


GOLDEN = Path(__file__).parents[1] / "golden" / "results_v1"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "discovery"])
def test_results_of_format_1_are_read(kind: str) -> None:
    content = json.loads((GOLDEN / kind / "result.json").read_text())
    result = Result.read(content)
    assert result.kind == kind
    assert (result.name, result.seed, result.complete) == (content["name"], content["seed"], True)
    if kind == "pretraining":
        assert result.benchmark.classes_per_experience == [content["base_classes"]]
        assert upgraded(content)["pretraining"]["epochs"] == content["epochs"]
    else:
        assert load_run(GOLDEN / kind).accuracy_matrix == content["metrics"]["accuracy_matrix"]


def test_results_of_format_1_are_compared_as_they_were(tmp_path: Path) -> None:
    compare([GOLDEN], tmp_path, formats=["csv"])
    assert (tmp_path / "table.csv").read_text() == (GOLDEN / "table.csv").read_text()


def test_no_run_is_left_out_silently(tmp_path: Path) -> None:
    good = write_run(tmp_path, make_result(seed=1))
    truncated = write_run(tmp_path, make_result(seed=2))
    text = (truncated / "result.json").read_text()
    (truncated / "result.json").write_text(text[: len(text) // 2])
    started = write_run(tmp_path, make_result(seed=3))
    (started / "result.json").unlink()
    running = write_run(tmp_path, unfinished(make_result(seed=4)))
    garbled = write_run(tmp_path, make_result(seed=5))
    (garbled / "config.yaml").write_text("a: [")
    empty = tmp_path / "empty"
    empty.mkdir()
    embedding = write_run(tmp_path, {**make_result(seed=6), "kind": "pretraining"})
    runs, skipped = load_runs([tmp_path, empty, tmp_path / "absent"])
    assert [run.path for run in runs] == [good]
    reasons = {one.path: one.reason for one in skipped}
    assert "damaged, it is not JSON" in reasons[truncated]
    assert "no result.json: the run stopped before" in reasons[started]
    assert "2 of 3 experiences" in reasons[running]
    assert "config.yaml is damaged" in reasons[garbled]
    assert "no result.json found" in reasons[empty]
    assert "no such file or directory" in reasons[tmp_path / "absent"]
    assert "training of an embedding" in reasons[embedding]
    assert len(skipped) == 7


def unfinished(result: dict[str, Any]) -> dict[str, Any]:
    """The result as it was after two of its three experiences."""
    shorter = make_result(seed=result["seed"], sizes=(2, 2))
    benchmark = {**result["benchmark"]}
    return {**result, "status": "running", "benchmark": benchmark} | {
        key: json.loads(json.dumps(shorter[key])) for key in ("metrics", "confusion")
    }
