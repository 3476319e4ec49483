"""Figures as files (PNG) and as pictures inside a page (SVG)."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from protocl.errors import DataError
from protocl.io.atomic import atomic_write
from protocl.report import figures
from protocl.report.groups import Benchmark, Group
from protocl.report.runs import Run
from protocl.report.scaling import CostPoint, accuracy_against_bytes

_DPI = 160
_DARK_INK = "#dfe6ee"
_DARK_GRID = "#46515e"
_THEME = (
    f"<style>:root{{--ink:{figures.INK};--grid:{figures.GRID}}}"
    f"@media(prefers-color-scheme:dark){{:root{{--ink:{_DARK_INK};--grid:{_DARK_GRID}}}}}</style>"
)


def write_plots(run: Run, out_dir: Path) -> list[Path]:
    """Write the plots of one run; a run without any evaluation yet has none."""
    if not run.stream_accuracy:
        return []
    alone = Group([run], run.title)
    drawn = {
        "accuracy_curve.png": figures.accuracy_curves([accuracy_curve(alone)], width=6.5),
        "accuracy_matrix.png": figures.accuracy_matrix(run.accuracy_matrix),
        "confusion_matrix.png": figures.confusion_matrix(run, width=6.5, most_cells=300),
    }
    if run.rounds:
        drawn["rounds.png"] = figures.round_curves([round_curve(alone)])
    written = []
    for name, figure in drawn.items():
        figures.set_title(figure, f"{run.title} on {run.benchmark.name}, seed {run.seed}")
        atomic_write(out_dir / name, png(figure))
        written.append(out_dir / name)
    return written


def overview(benchmark: Benchmark) -> Figure:
    """The one figure that says most of a benchmark.

    Accuracy over the classes seen; of federations over their rounds; bars where there is one
    experience only.
    """
    groups = benchmark.groups
    if all(len(group.first.rounds) > 1 for group in groups):
        return figures.round_curves([round_curve(group) for group in groups])
    curves = [accuracy_curve(group) for group in groups]
    if not benchmark.single:
        return figures.accuracy_curves(curves)
    return figures.final_bars([one.label for one in groups], [one.accuracy[-1] for one in curves])


def bytes_overview(benchmark: Benchmark) -> Figure:
    """Accuracy of each group against the bytes that its clients send, else that it keeps.

    Raises:
        DataError: a group does neither, so that it has no place on the axis.
    """
    return accuracy_against_bytes([_cost_point(group) for group in benchmark.groups])


def _cost_point(group: Group) -> CostPoint:
    sent = group.spread(lambda run: run.exchanged("up"))
    size = sent or group.spread(lambda run: run.strategy.state_bytes)
    if size is None or not size.mean:
        raise DataError(
            f"{group.label}: nothing says how many bytes it keeps or sends; leave its runs out"
        )
    accuracy = group.spread(lambda run: run.stream_accuracy[-1])
    assert accuracy is not None
    return CostPoint(group.label, size.mean / 1e6, sent is not None, accuracy)


def accuracy_curve(group: Group) -> figures.Curve:
    """The accuracy over the stream, averaged over seeds."""
    return figures.Curve(group.label, group.first.classes_seen, group.curve())


def round_curve(group: Group) -> figures.RoundCurve:
    """The rounds of a federation, averaged over seeds."""
    points = group.rounds()
    return figures.RoundCurve(
        group.label, [accuracy for accuracy, _ in points], [exchanged for _, exchanged in points]
    )


def png(figure: Figure) -> bytes:
    """The figure on white, at 160 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight")
    return buffer.getvalue()


def picture(figure: Figure, format: str) -> bytes:
    """The figure on white as ``"pdf"``, ``"svg"`` or ``"png"``, as journals take it.

    Fonts are embedded as TrueType, whose text can be searched; equal input gives equal bytes.
    """
    if format == "png":
        return png(figure)
    dates = {"CreationDate": None} if format == "pdf" else {"Date": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "protocl"}):
        figure.savefig(
            buffer, format=format, facecolor="white", bbox_inches="tight", metadata=dates
        )
    return buffer.getvalue()


def svg_data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address whose ink follows the reader's light or dark theme."""
    buffer = io.StringIO()
    # Text stays text (small, searchable); fixed salt and date: equal input, equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "protocl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    end_of_tag = picture.index(">") + 1
    head, body = picture[:end_of_tag], picture[end_of_tag:]
    body = body.replace(figures.INK, "var(--ink)").replace(figures.GRID, "var(--grid)")
    body = body.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    encoded = base64.b64encode((head + _THEME + body).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"
