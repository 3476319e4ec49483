"""``protocl federate`` with the methods ``protected`` and ``robust``, on digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocl import PrototypeMemory
from protocl.errors import AllFailedError, ConfigError
from protocl.federation.client.client import ClientData
from protocl.federation.config.compose import load
from protocl.federation.methods.protected import ProtectedPrototypesConfig
from protocl.federation.privacy.plausible import SumCheck
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.runner.run import FederatedRun, run_federation
from protocl.federation.secure.protocol.schemes import COMPLETE
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.validation import RejectedError
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run


def run(tmp_path: Path, *words: str) -> tuple[dict[str, Any], PrototypeMemory]:
    (config,) = load([f"output={tmp_path}", *words])
    folder = open_run(config)
    result = run_federation(config, folder)
    return result, PrototypeMemory.load(folder / "model" / "memory.safetensors")


@pytest.mark.parametrize("words", [["rounds=1"], ["rounds=3", "partition.growth=samples"]])
def test_secure_run_equals_the_plain_one(tmp_path: Path, words: list[str]) -> None:
    secure, memory = run(tmp_path, "federation=digits_secure", *words)
    plain, expected = run(tmp_path, "federation=digits", *words)
    assert same_statistics(memory, expected)
    assert secure["metrics"] == plain["metrics"]
    kinds = {f"train.{step}" for step in ("advertise", "share", "mask", "unmask")}
    assert set(secure["federation"]["bytes_by_message_type"]) == kinds


def test_secure_run_with_lost_replies_equals_the_plain_one(tmp_path: Path) -> None:
    """One answer in fifty is lost at any step; later rounds make up for it while data grow."""
    words = ["clients=12", "partition=iid", "partition.growth=samples", "rounds=9", "lost=0.02"]
    _, memory = run(tmp_path, "federation=digits_secure", "seed=3", *words)
    _, expected = run(tmp_path, "federation=digits", "seed=3", *words[:-1])
    missing = expected.copy().subtract(memory)  # and what is there is nothing else
    assert 0 <= missing.total < expected.total / 10


@pytest.mark.parametrize("secure", ["true", "false"])
def test_classes_that_the_limits_do_not_accept_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secure: str
) -> None:
    words = ["federation=digits", "method=protected", f"method.secure={secure}", "rounds=1"]
    _, memory = run(tmp_path, *words, "limits.classes=[0,1,2,77]", "limits.max_classes_in_all=3")
    assert memory.classes.tolist() == [0, 1, 2]
    left_out = [int(r.getMessage().split()[0]) for r in caplog.records if "left out" in r.msg]
    _, whole = run(tmp_path, *words)
    assert whole.total == memory.total + sum(left_out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("limits.max_classes_in_all=9", "max_classes_in_all=9: the public list has 10 classes"),
        (
            "limits.classes=[77,cat]",
            r"classes=\[77, 'cat'\]: none .* expected some of range\(0, 10",
        ),
        (
            "limits.max_classes=9 method.noise=central",
            "max_classes=9: with noise .* all 10 classes",
        ),
    ],
)
def test_limits_on_classes_that_no_vector_keeps_are_refused(
    tmp_path: Path, words: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(tmp_path, "federation=digits", "method=protected", *words.split())


def test_limits_that_64_bits_do_not_hold_are_refused_before_a_client_is_asked(
    tmp_path: Path,
) -> None:
    words = ["federation=digits", "method=protected", "method.head=lda"]
    with pytest.raises(ConfigError, match=r"max_feature=1e\+06.*at most 32768"):
        run(tmp_path, *words, "limits.max_feature=1e6")


@pytest.mark.parametrize("secure", ["true", "false"])
def test_a_vector_of_more_classes_than_one_client_may_have_is_refused(
    tmp_path: Path, secure: str
) -> None:
    words = ["federation=digits", "method=protected", f"method.secure={secure}", "rounds=1"]
    with pytest.raises(AllFailedError, match="classes; at most 1 are accepted"):
        run(tmp_path, *words, "limits.max_classes=1")


def test_the_server_counts_the_classes_of_vectors() -> None:
    layout = StatisticsLayout(PrototypeMemory(2, exact=True), range(4))
    batch = torch.ones(3, 2), torch.tensor([0, 1, 3])
    vector = layout.pack(layout.empty_memory().update(*batch))
    check = SumCheck(layout, None, Limits(max_classes=2))
    check.require_possible(vector, contributors=2)
    with pytest.raises(RejectedError, match="3 classes; at most 2"):
        check.require_possible(vector)
    with pytest.raises(RejectedError, match="class 3 is not in limits"):
        SumCheck(layout, None, Limits(classes=[0, 1, 2])).require_possible(vector)


@pytest.mark.parametrize("noise", ["central", "distributed"])
def test_private_run(tmp_path: Path, noise: str) -> None:
    result, memory = run(tmp_path, "federation=digits_private", f"method.noise={noise}")
    assert result["metrics"]["last_accuracy"] > 0.8
    _, plain = run(tmp_path, "federation=digits")
    assert memory.classes.tolist() == plain.classes.tolist()
    assert not torch.equal(memory.counts, plain.counts)
    privacy = result["federation"]["privacy"]
    assert privacy.pop("honest", None) == (4 if noise == "distributed" else None)
    against = privacy.pop("epsilon_against")
    assert privacy == {
        "noise": noise, "epsilon": 2.0, "delta": 1e-5, "clip": 3.5, "secure": True,
        "colluders": 0, "against": "an honest but curious server",
    }  # fmt: skip
    assert against["colluders"]["colluders"] == 6
    assert against["colluders"]["add_remove"] == pytest.approx(2.0, abs=1e-4)
    assert against["outsiders"]["add_remove"] <= against["colluders"]["add_remove"]
    assert all(a["replace_one"] > 1.4 * a["add_remove"] for a in against.values())


def test_the_honest_carry_the_noise() -> None:
    """Fewer honest contributors add more each; a participant's own noise hides nothing from it."""
    layout = StatisticsLayout(PrototypeMemory(2, exact=True), range(2))
    against = {}
    for honest in (0, 7):
        config = ProtectedPrototypesConfig(noise="distributed", honest=honest)
        release = config.build_release(layout, COMPLETE, asked=10)
        described = config.describe(COMPLETE, release, asked=10)
        assert described["honest"] == honest or (honest == 0 and described["honest"] == 4)
        against[honest] = described["epsilon_against"]
    assert against[0]["colluders"]["add_remove"] == pytest.approx(8.0, abs=1e-3)
    assert against[0]["outsiders"]["add_remove"] < 6
    # Six of ten collude, so that seven cannot be honest: four hold 4/7 of the noise.
    assert against[7]["colluders"]["add_remove"] > 11
    assert against[7]["outsiders"]["add_remove"] == pytest.approx(8.0, abs=1e-3)


def attacked(config_words: list[str], folder: Path) -> float:
    """Accuracy of a run in which 6 of 20 clients give every class the name of the next."""
    (config,) = load([*config_words, f"output={folder}"])
    federated = FederatedRun(RunContext("federation", config, open_run(config)))
    honest = federated.clients.__call__

    def lying(context: Any) -> ClientData:
        data = honest(context)
        if int(context.node_config["partition-id"]) >= 6:
            return data
        return ClientData([(x, (y + 1) % 10) for x, y in data.chunks])

    federated.method.client.load = lying  # type: ignore[attr-defined]
    return float(federated.finish()["metrics"]["last_accuracy"])


def test_robust_run_withstands_liars(tmp_path: Path) -> None:
    words = ["federation=digits_robust", "seed=1"]
    assert attacked([*words, "method.centre=exact"], tmp_path) < 0.82
    assert attacked(words, tmp_path) > 0.87
    screened = [*words, "method.centre=exact", "method.screen=0.5", "method.head=lda"]
    assert attacked(screened, tmp_path) > 0.9


def test_robust_run_without_liars_keeps_every_client(tmp_path: Path) -> None:
    result, memory = run(tmp_path, "federation=digits_robust", "rounds=2", "seed=2", "evaluate=1")
    assert result["metrics"]["last_accuracy"] > 0.89
    assert len(memory) == 10
    assert 0.7 * 1347 < memory.total < 1347  # counts are capped


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=robust", "method.head=lda"], "needs second moments"),
        (["method=robust", "method.keep_contributions=false"], "side by side"),
        (["method=robust", "method.trim=0.6"], r"method\.trim=0\.6"),
        (["method=robust", "method.centre=mode"], "method.centre=mode"),
        (["method=robust", "method.screen=3"], "minimum=3"),
        (["method=protected", "method.noise=some"], "method.noise=some"),
        (["method=protected", "method.noise=local", "method.epsilon=-1"], "epsilon=-1"),
        (["method=protected", "method.noise=local", "method.clip=0"], "clip=0"),
        (["method=protected", "method.colluders=-1"], r"method\.colluders=-1"),
        (["method=protected", "method.colluders=9"], "needs 11 clients"),
        (["method=protected", "method.honest=-1"], r"method\.honest=-1"),
        (["method=protected", "method.noise=distributed", "method.honest=8"], "7 at most"),
        (["method=protected", "method.noise=distributed", "method.secure=false"], "without secure"),
    ],
)
def test_settings_that_do_not_work_are_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "federation=digits", *words)
