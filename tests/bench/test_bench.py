"""The benchmark command at a tiny size: every case runs and compares equal results."""

from __future__ import annotations

import argparse
import io
import json
import threading
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console

from protocl import bench
from protocl.bench.command import GROUPS, table
from protocl.bench.comparison import SIZES, SpeedComparison, require_equal
from protocl.bench.peak_memory import MIB, PeakMeter, _Samples
from protocl.bench.scale import bare_topk
from protocl.bench.timing import interleaved, thread_count
from protocl.errors import ConfigError


def comparison(**changes: object) -> SpeedComparison:
    values = {
        "case": "a case",
        "peer_name": "a peer",
        "ours": 2.0,
        "peer": 6.0,
        "kind": "speedup",
        "target": 3.0,
        "threads": 1,
        **changes,
    }
    return SpeedComparison(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "value", "met"),
    [
        ({}, 3.0, True),
        ({"target": 3.1}, 3.0, False),
        ({"kind": "cost", "target": 0.34}, 1 / 3, True),
        ({"kind": "cost", "target": 0.33}, 1 / 3, False),
        ({"kind": "limit", "peer": None, "target": 2.0}, 2.0, True),
        ({"kind": "limit", "peer": None, "target": 1.9}, 2.0, False),
        ({"target": None}, 3.0, None),
    ],
)
def test_value_and_verdict(changes: dict[str, object], value: float, met: bool | None) -> None:
    measured = comparison(**changes)
    assert measured.value == pytest.approx(value)
    assert measured.met is met
    assert measured.as_dict()["met"] is met


def test_a_ratio_needs_a_peer() -> None:
    with pytest.raises(ValueError, match="no peer"):
        _ = comparison(peer=None).value


def test_unequal_results_are_refused() -> None:
    assert require_equal("a case", 0.1, 0.1) == 0.1
    with pytest.raises(ValueError, match=r"differ by 0\.2, more than 0\.1"):
        require_equal("a case", 0.2, 0.1)
    with pytest.raises(ValueError, match="nan"):
        require_equal("a case", float("nan"), 0.1)


def test_interleaved_keeps_the_best_round_of_each_and_the_last_result() -> None:
    ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0, 30.0, 39.0])
    calls: list[str] = []
    ours, peer = interleaved(
        lambda: calls.append("ours") or len(calls),
        lambda: calls.append("peer") or len(calls),
        repeats=2,
        clock=lambda: next(ticks),
    )
    assert calls == ["ours", "peer", "ours", "peer"]
    assert (ours.seconds, ours.result) == (2.0, 3)
    assert (peer.seconds, peer.result) == (1.0, 4)


def test_thread_count_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with thread_count(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kernel", [True, False])
def test_peak_meter_sees_memory_that_is_gone_again(
    kernel: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, has_read = _Samples._read, threading.Event()

    def read_and_tell(meter: _Samples) -> None:
        read(meter)
        has_read.set()

    if not kernel:
        monkeypatch.setattr("protocl.bench.peak_memory._CLEAR", tmp_path / "absent")
        monkeypatch.setattr(_Samples, "_read", read_and_tell)
    with PeakMeter() as meter:
        block = torch.ones(64 * MIB // 4)
        block += 1
        if not kernel:
            for _ in range(2):  # the reading that ends first may have begun before the block
                has_read.clear()
                assert has_read.wait(60), "the sampling thread never had its turn"
        del block
    assert 60 * MIB < meter.rise < 90 * MIB


@pytest.mark.parametrize("group", GROUPS.names())
def test_every_case_runs_and_both_sides_agree(group: str) -> None:
    found = [measured for _, measured in bench.run([group], size=SIZES["small"], threads=1)]
    assert found
    for measured in found:
        assert measured.threads == 1
        assert measured.ours >= 0
        assert (measured.peer is None) == (measured.kind == "limit")
        if measured.kind in ("speedup", "cost"):
            # The group itself has raised if the results differ by more than its tolerance.
            assert measured.difference is not None


def test_unknown_group_is_named_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="did you mean 'statistics'"):
        next(bench.run(["statistcs"]))


def test_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    output = tmp_path / "speed.json"
    arguments = ["statistics", "--size", "small", "--threads", "1", "--output", str(output)]
    assert bench.main(parser.parse_args(arguments)) == 0
    assert "float64 product" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["machine"]["threads"] == 1
    assert written["versions"]["torch"]
    assert [c["case"][:18] for c in written["comparisons"]] == [
        f"update, level {level}"[:18] for level in ("mean", "diagonal", "shared", "full")
    ]
    for case in written["comparisons"]:
        assert case["value"] == pytest.approx(case["ours"] / case["peer"])


def test_curves_of_many_classes_go_beside_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    output = tmp_path / "scale.json"
    arguments = ["scale", "--size", "small", "--threads", "1", "--output", str(output)]
    assert bench.main(parser.parse_args(arguments)) == 0
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    points = [case["point"] for case in json.loads(output.read_text())["comparisons"]]
    drawn = {(point["curve"], point["classes"]) for point in points if point}
    wanted = product(("update", "merge", "fit", "predict"), SIZES["small"].many_classes)
    assert drawn == set(wanted)


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (100, 5), (7, 100)])
def test_the_bare_product_finds_the_largest(rows: int, columns: int) -> None:
    queries, points = torch.randn(20, 6), torch.randn(30, 6)
    values, places = bare_topk(queries, points, 5, rows, columns)
    expected = (queries @ points.T).topk(5)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_a_case_with_several_peers_is_named_once() -> None:
    rows = [comparison(case="merge"), comparison(case="merge", peer_name="a copy")]
    console = Console(file=io.StringIO(), width=80)
    console.print(table(rows, threads=1))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("merge") == 1
    assert text.index("merge") < text.index("a copy")


def test_table_shows_ratio_target_and_verdict() -> None:
    rows = [
        comparison(),
        comparison(kind="cost", target=0.1, case="slow"),
        comparison(kind="limit", peer=None, unit="MiB", target=64.0, case="memory"),
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(table(rows, threads=2))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in (
        "threads: 2",
        "3x",
        ">= 3x",
        "yes",
        "0.333x",
        "<= 0.1x",
        "no",
        "2.0 MiB",
        "<= 64",
    ):
        assert shown in text
