"""Long tails: sizes of the literature, what stays, and that every kind of run tells of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from protocl.cli.main import main
from protocl.data import ArrayData, BenchmarkConfig, load_data
from protocl.errors import ConfigError
from protocl.registry import BENCHMARKS


def made(monkeypatch: pytest.MonkeyPatch, data: ArrayData, **settings: Any) -> ArrayData:
    monkeypatch.setattr(type(BENCHMARKS), "get", lambda *_: lambda _: data)
    return load_data(BenchmarkConfig("toy", **settings))


def balanced(classes: int, each: int) -> ArrayData:
    """Vectors that are their own row numbers, classes in turn."""
    y = torch.arange(classes).repeat(each)
    x = torch.arange(len(y), dtype=torch.float32)[:, None]
    names = [str(c) for c in range(classes)]
    return ArrayData(x, y, x[:classes], y[:classes], names, "toy")


def counts(data: ArrayData) -> list[int]:
    return torch.bincount(data.y_train, minlength=data.n_classes).tolist()


def test_sizes_are_those_of_cifar100_lt(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(monkeypatch, balanced(100, 500), imbalance=0.01)
    sizes = counts(data)
    assert (sum(sizes), sizes[0], sizes[-1]) == (10847, 500, 5)
    assert sizes == sorted(sizes, reverse=True)
    assert len(data.y_test) == 100
    assert torch.equal(data.x_train[data.y_train == 99][:, 0], torch.arange(5.0) * 100 + 99)


def test_a_seed_draws_classes_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = balanced(10, 50)
    one = made(monkeypatch, whole, imbalance=0.1, imbalance_seed=1)
    again = made(monkeypatch, whole, imbalance=0.1, imbalance_seed=1)
    other = made(monkeypatch, whole, imbalance=0.1, imbalance_seed=2)
    plain = made(monkeypatch, whole, imbalance=0.1)
    assert one.content_hash == again.content_hash
    assert counts(one) != counts(other)
    assert sorted(counts(one)) == sorted(counts(other)) == sorted(counts(plain))
    rare = one.x_train[one.y_train == counts(one).index(5)][:, 0]
    assert not torch.equal(rare, whole.x_train[whole.y_train == counts(one).index(5)][:5, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"imbalance": 1.0}, [4, 4, 4]),
        ({"imbalance": 1e-9}, [4, 1, 1]),
        ({"imbalance": 0.25, "class_order": [2, 0]}, [4, 4, 1]),
        ({"imbalance": 0.25, "classes": 1}, [4]),
        ({"imbalance": 0.5, "train_per_class": 2}, [2, 1, 1]),
    ],
)
def test_other_restrictions_come_first_and_a_class_keeps_a_sample(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: list[int]
) -> None:
    assert counts(made(monkeypatch, balanced(3, 4), **settings)) == expected


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_shares_out_of_range_and_a_lone_seed_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="expected a share above 0, at most 1"):
        load_data(BenchmarkConfig(imbalance=share))
    with pytest.raises(ConfigError, match=r"imbalance_seed=3 is of a long tail: give"):
        load_data(BenchmarkConfig(imbalance_seed=3))


@pytest.mark.parametrize("key", ["imbalance_seed", "order_seed"])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(key: str, seed: int) -> None:
    with pytest.raises(ConfigError, match=f"benchmark.{key}={seed}: expected 0 <= seed"):
        load_data(BenchmarkConfig(imbalance=0.1, **{key: seed}))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "strategy=air", "strategy.head.map=relu_linear:dim=50"],
        ["federate", "method=prototypes", "partition=dirichlet", "clients=2", "rounds=1"],
    ],
)
def test_results_and_tables_tell_of_many_and_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    settings = [f"output={tmp_path}", "device=cpu", "seed=1", "benchmark=digits"]
    assert main([*words, *settings, "benchmark.imbalance=0.02"]) == 0
    (file,) = tmp_path.rglob("result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert set(result["metrics"]["accuracy_by_frequency"]) == {"many", "medium", "few"}
    assert result["benchmark"]["n_train"] < 500
    capsys.readouterr()
    assert main(["compare", str(file.parent), "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [title for title in ("Many %", "Medium %", "Few %") if title not in shown] == []
    assert "last_accuracy_std,many_accuracy_mean" in (tmp_path / "table.csv").read_text()
