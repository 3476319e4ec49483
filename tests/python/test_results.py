"""A sequence of results: filtered, shown, drawn, made a data frame."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from protocl import Results, load_run
from protocl.errors import ConfigError, DataError
from protocl.python.results import Failure, RunsFailedError
from protocl.report.runs import Embedding, Run
from tests.report.results import make_result, write_run

GOLDEN = Path(__file__).parents[1] / "golden" / "results_v1"


@pytest.fixture
def results(tmp_path: Path) -> Results[Run]:
    """Two strategies with two seeds each; the first one's head with a shrinkage of its own."""
    runs = []
    for strategy, shrinkage in (("slda", 0.5), ("fecam", 0.1)):
        for seed in (1, 2):
            result = make_result(strategy, seed)
            folder = write_run(tmp_path / strategy / str(seed), result, shrinkage=shrinkage)
            runs.append(load_run(folder))
    return Results(runs)


def test_it_is_a_sequence(results: Results[Run]) -> None:
    assert len(results) == 4
    assert results[-1].seed == 2
    assert [run.seed for run in results] == [1, 2, 1, 2]
    assert isinstance(results[1:3], Results)
    assert [run.strategy.name for run in results[1:3]] == ["slda", "fecam"]
    assert results[0] in results
    assert results[0].accuracy == results[0].metrics.last_accuracy


def test_filters_by_settings_by_the_end_of_a_key_and_by_a_test(results: Results[Run]) -> None:
    def kept(*tests: object, **settings: object) -> list[tuple[str, int]]:
        found = results.filter(*tests, **settings)  # type: ignore[arg-type]
        return [(run.strategy.name, run.seed) for run in found]

    assert kept(strategy="slda") == [("slda", 1), ("slda", 2)]
    assert kept(strategy={"name": "fecam"}, seed=2) == [("fecam", 2)]
    assert kept(shrinkage=0.5) == kept({"strategy.shrinkage": 0.5}) == kept(strategy="slda")
    assert kept(seed=[2, 3]) == kept(seed=range(2, 4)) == [("slda", 2), ("fecam", 2)]
    assert kept(lambda run: run.seed == 1, strategy=["slda"]) == [("slda", 1)]
    assert kept(strategy="napa_vq") == []
    with pytest.raises(ConfigError, match="unknown setting 'shrinkag': did you mean"):
        kept(shrinkag=1)


def test_table_and_page_for_notebooks(results: Results[Run]) -> None:
    text = repr(results)
    assert str(results.table()) == text
    assert [line.split()[:2] for line in text.splitlines()[-2:]] == [["SLDA", "2"], ["FECAM", "2"]]
    page = results._repr_html_()
    assert page.count("<table") == 1
    assert page.count('<th scope="row">') == 2
    assert results.table().markdown().count("\n| ") == 4


def test_failures_are_shown_and_escaped(results: Results[Run]) -> None:
    with_failure = Results(results, [Failure("seed=3", "no <such> thing", Path("x"))])
    assert repr(with_failure).endswith("failed seed=3: no <such> thing")
    assert "<p>failed seed=3: no &lt;such&gt; thing</p>" in with_failure._repr_html_()
    error = RunsFailedError(with_failure)
    assert str(error).startswith("1 of 5 runs failed:\n  seed=3: no <such> thing\nThe others")
    assert error.results is with_failure
    assert "The others" not in str(RunsFailedError(Results([], with_failure.failures)))


def test_plot_draws_one_curve_a_configuration(results: Results[Run]) -> None:
    (axes,) = results.plot().axes
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["FECAM", "SLDA"]
    assert results.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    other = load_run(GOLDEN / "federation")
    with pytest.raises(ConfigError, match="these runs are of 2 benchmarks"):
        Results([results[0], other]).plot()
    assert len(Results([other]).plot().axes) == 2


def test_without_a_run_there_is_nothing_to_show() -> None:
    assert repr(Results()) == Results()._repr_html_() == "no runs"
    for method in (Results().table, Results().plot, Results().to_pandas):
        with pytest.raises(ConfigError, match=r"\(\): there are no runs"):
            method()
    assert len(Results().filter(seed=1)) == 0


def test_pandas_is_asked_for_only_when_it_is_used(
    results: Results[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas.*pip install pandas"):
        results.to_pandas()


def test_data_frame_has_a_row_a_run(results: Results[Run]) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = results.to_pandas()
    assert list(frame["seed"]) == [1, 2, 1, 2]
    assert list(frame["strategy.shrinkage"]) == [0.5, 0.5, 0.1, 0.1]
    assert list(frame["last_accuracy"]) == [run.accuracy for run in results]
    assert "strategy.name" not in frame
    assert list(frame["path"]) == [str(run.path) for run in results]


@pytest.mark.parametrize("kind", ["experiment", "federation", "reconnaissance", "pretraining"])
def test_runs_of_format_1_are_loaded(kind: str) -> None:
    folder = GOLDEN / kind
    run = load_run(str(folder))
    assert load_run(folder / "result.json") == run
    assert run.kind == kind
    assert str(folder) in repr(run)
    assert run.config["seed"] == run.seed


def test_a_federation_has_its_numbers() -> None:
    run = load_run(GOLDEN / "federation")
    assert list(Results([run]).filter(clients=10, method="prototypes")) == [run]
    assert not Results([run]).filter(clients=11)
    federation = run.federation
    assert federation.clients == 10
    assert federation.contributions == {"merged": 50}
    last = federation.rounds[-1]
    assert (last.round, last.classes, last.evaluated, last.bytes_up) == (5, 10, 450, 12850)


def test_a_pretraining_has_losses_and_weights_but_no_table() -> None:
    run = load_run(GOLDEN / "pretraining")
    assert isinstance(run, Embedding)
    assert [epoch.epoch for epoch in run.pretraining.epochs] == [1, 2]
    assert run.weights == GOLDEN / "pretraining" / "backbone.safetensors"
    assert "loss 2.7141 after 2 epochs" in repr(Results([run]))
    with pytest.raises(ConfigError, match="a pretraining has no answers"):
        Results([run]).table()


def test_what_is_no_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(DataError) as refused:
            load_run(path)
        assert str(path) in str(refused.value)
        return str(refused.value)

    assert "there is no such folder" in refusal(tmp_path / "none")
    assert "no result.json found" in refusal(tmp_path)
    (tmp_path / "text").write_text("x")
    assert "expected a run's folder or its result.json" in refusal(tmp_path / "text")
    stopped = tmp_path / "runs" / "é 1"
    stopped.mkdir(parents=True)
    (stopped / "config.yaml").write_text("seed: 1\n")
    assert "stopped before its first result" in refusal(stopped)
    assert f"holds one run, and is none itself; load {stopped}" in refusal(tmp_path / "runs")
    for content, reason in (
        ("{", "damaged, it is not JSON"),
        ("[]", "the file should be an object"),
        ('{"format": 9}', "format is 9, but this version of protocl reads 1 to 2"),
        ('{"format": 2}', "kind is missing"),
    ):
        (stopped / "result.json").write_text(content)
        assert reason in refusal(stopped)


@pytest.mark.parametrize("strange", [["runs/a"], [{"accuracy": 1.0}], "abc", [Path("runs")]])
def test_what_is_no_run_is_none_of_the_results(strange: Any) -> None:
    with pytest.raises(TypeError, match="load_run"):
        Results(strange)
