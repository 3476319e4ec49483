"""Accuracy against bytes: what is kept, what is sent, and runs that say neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocl.cli.main import main
from protocl.errors import DataError
from protocl.metrics import MeanAndSpread
from protocl.report import compare
from protocl.report.scaling import CostPoint, accuracy_against_bytes
from tests.report.results import make_result, write_run


def test_points_lie_where_they_should_and_tell_sent_from_kept() -> None:
    points = [
        CostPoint("kept", 2.0, sent=False, accuracy=MeanAndSpread(0.5, None, 1)),
        CostPoint("sent", 700.0, sent=True, accuracy=MeanAndSpread(0.75, 0.01, 3)),
    ]
    axes = accuracy_against_bytes(points).axes[0]
    drawn = [container.lines[0] for container in axes.containers]
    assert [(float(*d.get_xdata()), float(*d.get_ydata())) for d in drawn] == [
        (2.0, 50.0), (700.0, 75.0),
    ]  # fmt: skip
    assert drawn[0].get_markerfacecolor() == "none" != drawn[1].get_markerfacecolor()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "kept: 2 MB kept", "sent: 700 MB sent",
    ]  # fmt: skip
    assert axes.get_xscale() == "log"


def test_what_it_is_drawn_against_takes_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), "--against", "bytes"]) == 2
    assert "give --figure FILE.pdf with it" in capsys.readouterr().err


def test_the_command_draws_it_and_names_runs_without_bytes(tmp_path: Path) -> None:
    result = make_result("slda")
    result["strategy"]["state_bytes"] = 3_000_000
    write_run(tmp_path / "a", result)
    file = tmp_path / "bytes.svg"
    words = ["compare", str(tmp_path / "a"), "--figure", str(file), "--against", "bytes"]
    assert main(words) == 0
    assert "3 MB kept" in file.read_text(encoding="utf-8")
    result = make_result("naive")
    result["strategy"]["state_bytes"] = None
    write_run(tmp_path / "b", result)
    with pytest.raises(DataError, match="nothing says how many bytes it keeps or sends"):
        compare([tmp_path], figure=tmp_path / "x.svg", against="bytes")
    with pytest.raises(ValueError, match="against='size': expected 'classes' or 'bytes'"):
        compare([tmp_path], figure=tmp_path / "x.svg", against="size")  # type: ignore[arg-type]
    assert not (tmp_path / "x.svg").exists()
