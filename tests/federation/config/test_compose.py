"""Settings of federations: a stream lasts as long as it has experiences."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocl.config.compose import to_yaml
from protocl.federation.config.compose import load


@pytest.mark.parametrize(
    ("words", "rounds"),
    [
        (["benchmark=digits"], 5),
        (["benchmark=split_cifar100"], 5),  # all data are there from the first round on
        (["benchmark=split_cifar100", "partition.growth=samples"], 5),
        (["benchmark=split_cifar100", "partition.growth=stream"], 10),
        (["benchmark=digits", "partition.growth=stream", "benchmark.n_experiences=2"], 2),
        (["benchmark=split_cifar100", "partition.growth=stream", "rounds=20"], 20),
        (["benchmark=split_cifar100", "partition.growth=stream", "federation.rounds=20"], 20),
        (["federation=digits_stream", "benchmark.n_experiences=2"], 5),  # its file says so
        (
            ["benchmark=split_cifar100", "partition.growth=stream", "benchmark.protocol=B50-Inc10"],
            5,
        ),
    ],
)
def test_rounds_follow_the_stream_unless_they_are_said(words: list[str], rounds: int) -> None:
    assert [config.federation.rounds for config in load(words)] == [rounds]


def test_a_run_is_repeated_with_the_rounds_that_it_had(tmp_path: Path) -> None:
    (config,) = load(["benchmark=split_cifar100", "partition.growth=stream", "rounds=12"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load([f"federation={file}"])[0].federation.rounds == 12


def test_each_run_of_a_sweep_has_its_own_rounds() -> None:
    swept = load(["partition.growth=stream,none", "benchmark.n_experiences=2,10"])
    assert [config.federation.rounds for config in swept] == [2, 10, 5, 5]
