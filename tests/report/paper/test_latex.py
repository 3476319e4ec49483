"""Tables for papers."""

from __future__ import annotations

from pathlib import Path

from protocl.cli.main import main
from protocl.report import compare
from protocl.report.paper.latex import escaped
from tests.report.results import make_result, write_run


def test_names_print_as_they_stand() -> None:
    shown = r"\textbackslash{}\{a\}\_\textasciicircum{}\textasciitilde{}\&\%\$\#"
    assert escaped("\\{a}_^~&%$#") == shown


def test_the_command_writes_what_a_paper_needs(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, make_result(strategy="my_50%", seed=seed))
        write_run(tmp_path, make_result(strategy="slda", seed=seed, skill=0.5))
    figure = tmp_path / "out" / "f.pdf"
    words = ["--latex", "--bibtex", "--figure", str(figure), "--output", str(tmp_path / "out")]
    assert main(["compare", str(tmp_path), *words]) == 0
    lines = (tmp_path / "out" / "table.tex").read_text().splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {row.count(" & ") for row in rows} == {rows[0].count(" & ")}
    assert rows[1].startswith(r"MY\_50\% & 2 & \textbf{")
    assert r"$\pm$" in rows[1]
    assert "±" not in "".join(lines)
    assert lines.count(r"\toprule") == lines.count(r"\bottomrule") == 1
    assert figure.read_bytes().startswith(b"%PDF")
    assert b"/Type3" not in figure.read_bytes()
    assert "hayes2020slda" in (tmp_path / "out" / "references.bib").read_text()


def test_the_usual_files_stay_three(tmp_path: Path) -> None:
    write_run(tmp_path, make_result())
    written = compare([tmp_path], tmp_path / "out").written
    assert [path.name for path in written] == ["report.html", "table.md", "table.csv"]
