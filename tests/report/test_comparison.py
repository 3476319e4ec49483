"""The command's function from end to end: tables, files, page and plots."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from protocl.errors import ConfigError, DataError
from protocl.metrics import MeanAndSpread
from protocl.report import Run, compare, figures, load_run, page, plot_run, table
from protocl.report.columns import COLUMNS
from protocl.report.plots import round_curve
from tests.report.results import make_result, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (1, 2):
        write_run(tmp_path / "runs", make_result("slda", seed))
        write_run(tmp_path / "runs", make_result("replay", seed, skill=0.5))
    broken = write_run(tmp_path / "runs", make_result("slda", 7))
    (broken / "result.json").write_text("{")
    return tmp_path / "runs"


def test_the_terminal_shows_the_table_and_what_is_left_out(runs: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    compare([runs], tmp_path / "out", console=Console(file=stream, width=80))
    shown = stream.getvalue()
    assert "digits B0-Inc2" in shown
    line = next(line for line in shown.splitlines() if "SLDA" in line and "±" in line)
    assert line.split()[1] == "2"
    assert line.count("±") == 3
    assert "20260101-000000-7: result.json is damaged" in shown
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in shown


def test_columns_without_room_are_named_and_none_is_cut(runs: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    compare([runs], tmp_path / "out", console=Console(file=stream, width=56))
    text = stream.getvalue()
    assert "No room for Forgetting, KiB, s:" in " ".join(text.split())
    header = next(line for line in text.splitlines() if "Strategy" in line)
    assert header.split()[-2:] == ["Last", "%"]


def test_csv_holds_the_unrounded_mean_and_spread(runs: Path, tmp_path: Path) -> None:
    compare([runs], tmp_path / "out", formats=["csv"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv"]
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    slda = next(line for line in lines if line["strategy"] == "slda")
    values = [make_result("slda", seed)["metrics"]["last_accuracy"] for seed in (1, 2)]
    assert float(slda["last_accuracy_mean"]) == pytest.approx(np.mean(values), abs=1e-12)
    assert float(slda["last_accuracy_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert (slda["n"], slda["seeds"]) == ("2", "1 2")
    assert slda["seconds_mean"] == "3.5"


def test_markdown_marks_the_best_value(runs: Path) -> None:
    comparison = compare([runs])
    text = table.markdown(comparison.benchmarks, comparison.skipped)
    assert comparison.written == []
    slda = next(line for line in text.splitlines() if line.startswith("| SLDA"))
    replay = next(line for line in text.splitlines() if line.startswith("| REPLAY"))
    assert slda.split(" | ")[2].startswith("**")
    assert not replay.split(" | ")[2].startswith("**")
    assert "Runs left out:\n\n- `" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_best_is_decided_on_what_is_printed() -> None:
    forgetting = next(column for column in COLUMNS if column.key == "forgetting")
    tie = [MeanAndSpread(0.10001, None, 1), MeanAndSpread(0.10002, None, 1), None]
    assert forgetting.best(tie) == {0, 1}
    assert forgetting.best([MeanAndSpread(0.2, None, 1), *tie]) == {1, 2}
    assert forgetting.best([None, MeanAndSpread(0.2, None, 1)]) == set()
    assert forgetting.text(MeanAndSpread(-0.000001, 0.02, 3)) == "0.00 ± 2.00"
    assert forgetting.text(None) == "-"


def test_large_costs_are_grouped_by_thousands_and_never_marked(tmp_path: Path) -> None:
    for strategy, size in (("slda", 64 * 2**20), ("naive", 2**10)):
        result = make_result(strategy)
        result["strategy"]["state_bytes"] = size
        write_run(tmp_path, result)
    rows = table.rows(compare([tmp_path]).benchmarks[0])
    at = [column.key for column in COLUMNS].index("state_bytes")
    assert {row.cells[at] for row in rows} == {
        table.Cell("65,536.0", best=False),
        table.Cell("1.0", best=False),
    }


class PageReader(HTMLParser):
    """Collects addresses and checks that tags are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(runs: Path, tmp_path: Path) -> None:
    compare([runs], tmp_path / "out", formats=["html"])
    page = (tmp_path / "out" / "report.html").read_text()
    reader = PageReader()
    reader.feed(page)
    assert reader.open == []
    pictures = [one for one in reader.addresses if one.startswith("data:image/svg+xml;base64,")]
    assert len(pictures) == 3 + 2 * 2  # curves, bars, times; two matrices for each strategy
    assert all(one.startswith(("data:", "#")) for one in reader.addresses)
    for picture in pictures:
        svg = base64.b64decode(picture.partition(",")[2]).decode()
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg
        assert figures.INK not in svg.replace(f"--ink:{figures.INK}", "")
    assert "1 left out" in page
    assert re.search(r'class="number best">\d', page)
    assert "protocl run experiment=" in page


def test_names_from_files_cannot_inject_markup(tmp_path: Path) -> None:
    title = "<script>alert(1)</script> & co"
    result = make_result("slda", 1)
    result["strategy"]["title"] = title
    write_run(tmp_path / "runs", result)
    compare([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert html.escape(title) in page


def test_without_a_complete_run_nothing_is_written(tmp_path: Path) -> None:
    broken = write_run(tmp_path / "runs", make_result())
    (broken / "result.json").write_text("[]")
    with pytest.raises(DataError, match=r"no complete run to compare:\n.*should be an object"):
        compare([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format 'htm': did you mean 'html'"):
        compare([tmp_path], formats=["htm"])
    with pytest.raises(ConfigError, match="choose from html, markdown, csv"):
        compare([tmp_path], formats=[])


def test_plots_of_a_run_are_pictures_and_leave_pyplot_alone(tmp_path: Path) -> None:
    was_loaded = "matplotlib.pyplot" in sys.modules
    files = plot_run(make_result(), tmp_path / "plots")
    names = ["accuracy_curve.png", "accuracy_matrix.png", "confusion_matrix.png"]
    assert [file.name for file in files] == names
    for file in files:
        pixels = imread(file)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert np.isclose(pixels, to_rgb(figures.INK), atol=1 / 255).all(axis=-1).any()
        assert 0.01 < (pixels < 1).any(axis=-1).mean() < 0.95
    assert ("matplotlib.pyplot" in sys.modules) == was_loaded


def federated(seed: int, accuracies: list[float], up: int) -> dict[str, Any]:
    rounds = [{"accuracy": a, "bytes_up": up, "bytes_down": 1_000_000} for a in accuracies]
    return make_result(seed=seed, federation={"rounds": rounds})


def test_federations_are_compared_by_bytes_and_rounds(tmp_path: Path) -> None:
    write_run(tmp_path / "a", federated(1, [0.5, 0.75], 2_000_000))
    write_run(tmp_path / "b", federated(2, [0.25, 0.75], 4_000_000))
    compared = compare([tmp_path], tmp_path, formats=["html", "csv"])
    (group,) = compared.benchmarks[0].groups
    (first, early), (second, late) = group.rounds()
    assert (first.mean, second.mean) == (0.375, 0.75)
    assert (early, late) == (4e6, 8e6)
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["megabytes_up_mean"]) == 6e6
    assert float(row["megabytes_down_mean"]) == 2e6
    assert "against rounds and bytes" in (tmp_path / "report.html").read_text()
    figure = figures.round_curves([round_curve(group)])
    lines = [axes.lines[0] for axes in figure.axes]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [4.0, 8.0]]
    assert all(line.get_ydata().tolist() == [37.5, 75.0] for line in lines)


def test_other_runs_show_nothing_of_federations(runs: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    compare([runs], tmp_path / "out", console=console)
    assert "MB up" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "against rounds and bytes" not in (tmp_path / "out" / "report.html").read_text()


def test_a_run_without_an_evaluation_has_no_plots(tmp_path: Path) -> None:
    result = make_result(status="running", confusion={"classes": [], "counts": []})
    result["metrics"] = {"accuracy_matrix": [], "stream_accuracy": []}
    assert plot_run(result, tmp_path) == []


def test_pooled_confusion_keeps_every_count(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, make_result(sizes=(10,) * 7, skill=0.6)))
    axes = figures.confusion_matrix(run, most_cells=30).axes[0]
    share = np.asarray(axes.images[0].get_array())
    assert share.shape == (24, 24)  # 70 classes in cells of 3, the last one smaller
    assert share.sum(axis=1) == pytest.approx(np.full(24, 100.0))
    order = [class_id for classes in run.experiences for class_id in classes]
    rows = [run.confusion.classes.index(class_id) for class_id in order[:3]]
    counts = np.array(run.confusion.counts)[rows]
    assert share[0, 0] == pytest.approx(100 * counts[:, rows].sum() / counts.sum())


def test_confusion_stands_in_the_order_of_learning(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, make_result(skill=1.0)))
    axes = figures.confusion_matrix(run).axes[0]
    learnt = [run.class_name(c) for classes in run.experiences for c in classes]
    assert [label.get_text() for label in axes.get_yticklabels()] == learnt
    assert np.array_equal(np.asarray(axes.images[0].get_array()), 100 * np.eye(6))


def test_more_strategies_than_colours_stay_distinct() -> None:
    run = Run.from_result(make_result(), Path("run"))
    points = [MeanAndSpread(value, 0.01, 3) for value in run.stream_accuracy]
    curves = [figures.Curve(f"method {i}", run.classes_seen, points) for i in range(20)]
    lines = figures.accuracy_curves(curves).axes[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 20


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_what_they_name() -> None:
    labels = [f"SLDA, {', '.join(f'setting_{i}={i + n}' for i in range(20))}" for n in range(20)]
    values = [MeanAndSpread(0.5, 0.1, 3)] * 20
    curves = [figures.Curve(label, [2, 4], values[:2]) for label in labels]
    for figure in (
        figures.accuracy_curves(curves),
        figures.final_bars(labels, values),
        figures.phase_bars(labels, {"train": [1.0] * 20}),
    ):
        figure.savefig(io.BytesIO(), format="svg")
        assert figure.axes[0].get_position().width > 0.25


def test_a_single_experience_has_nothing_over_time(tmp_path: Path) -> None:
    write_run(tmp_path, make_result("slda", sizes=(4,)))
    (benchmark,) = compare([tmp_path]).benchmarks
    shown = [column.key for column in table.columns(benchmark)]
    assert "last_accuracy" in shown
    assert not {"forgetting", "average_incremental_accuracy", "backward_transfer"} & set(shown)
    assert all(len(row.cells) == len(shown) for row in table.rows(benchmark))
    text = page.render([benchmark], [])
    assert "1 experience," in text
    assert "Accuracy over the stream" not in text
    assert "Accuracy matrices" not in text
    assert "Confusion" in text
