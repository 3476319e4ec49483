"""What an operator sees and does, on a deployed server."""

from __future__ import annotations

import json
import logging
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation import FederatedPrototypes, InProcessGrid, Limits
from protocl.federation.deploy.apps import build_strategy, client_app
from protocl.federation.deploy.server_loop import serve
from protocl.federation.operations.blocking import BlockingGrid, BlockList
from protocl.federation.operations.json_log import json_log
from protocl.federation.operations.metrics import ServerMetrics, served_metrics
from protocl.federation.wire.traffic import Ledger
from tests.federation.deploy.test_apps import NODES, TASK, configuration


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.removeprefix("protocl_federation_"): float(value) for name, value in pairs}


class Watched(InProcessGrid):
    """Asks for the metrics while a round is on."""

    port = 0

    def push_messages(self, messages: Any) -> list[str]:
        self.seen = read(self.port)
        return super().push_messages(messages)


def test_metrics_log_and_a_blocked_node_of_a_deployed_server(tmp_path: Path):
    port = free_port()
    changes = {"metrics-port": port, "log-json": True, "rounds": 3, "evaluate": 0.0}
    config = configuration(
        tmp_path / "app ä", "limits.max_count=1", **changes, **{"min-clients": 1}
    )
    config["limits.max_count"] = 1000
    grid = Watched(client_app(TASK), NODES, run_config=config, isolate=True)
    grid.port = port
    folder = Path(config["output"])
    folder.mkdir(parents=True)
    words = ["federate", "block", str(folder), "node=1002"]
    assert main(words) == 0
    strategy = build_strategy(TASK, config)
    serve(grid, strategy, config)  # type: ignore[arg-type]
    assert isinstance(strategy, FederatedPrototypes)
    assert strategy.merged.clients == ["1000", "1001", "1003", "1004"]
    seen = grid.seen  # after two rounds
    assert (seen["rounds_total"], seen["clients"], seen["backlog"]) == (2, 4, 0)
    assert seen['contributions_total{outcome="merged"}'] == 8
    up = sum(strategy.traffic.total("up", number) for number in (1, 2))
    assert seen['bytes_total{direction="up"}'] == up > 0
    assert seen['seconds_total{part="merge"}'] > 0
    with pytest.raises(OSError, match="refused"):
        read(port)  # it ends with the run
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "round" in line]
    assert [line["merged"] for line in rounds if line["round"]][-3:] == [4, 4, 4]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert main(["federate", "unblock", str(folder), "node=1002"]) == 0
    serve(grid, strategy := build_strategy(TASK, config), {**config, "rounds": 4})
    assert len(strategy.merged.clients) == NODES  # type: ignore[attr-defined]


def test_refusals_are_counted_by_reason(tmp_path: Path):
    metrics, strategy = ServerMetrics(), None
    config = configuration(tmp_path / "app", rounds=1, evaluate=0.0)
    strategy = build_strategy(TASK, config | {"limits.max_classes": 1})
    with pytest.raises(Exception, match="nothing was merged"):
        serve(
            InProcessGrid(client_app(TASK), NODES, run_config=config), strategy, config
        )  # fmt: skip
    metrics.update(strategy, backlog=3)
    found = {
        (sample.name.removeprefix("protocl_federation_"), *sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }
    reasons = Ledger.load(Path(config["output"]) / "ledger.jsonl").reasons()
    assert sum(reasons.values()) == NODES
    for reason, number in reasons.items():
        assert found["refused_total", reason] == number
    assert found["backlog",] == 3
    assert found["samples",] == 0


def test_no_port_is_opened_by_default_and_a_taken_one_is_named():
    with served_metrics(0) as metrics:
        assert list(metrics.collect()) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"metrics-port={port}: .*in use"),
            served_metrics(port),
        ):
            pass
    with pytest.raises(ConfigError, match="metrics-port=70000"), served_metrics(70000):
        pass


def test_a_block_list_is_read_anew_and_a_damaged_one_blocks_the_round(tmp_path: Path):
    blocked, grid = BlockList(tmp_path), InProcessGrid(client_app(TASK), 3)
    wrapped = BlockingGrid(grid, blocked)
    assert wrapped.get_node_ids() == [1000, 1001, 1002]
    assert blocked.change("1001", blocked=True) == {"1001"}
    assert wrapped.get_node_ids() == [1000, 1002]
    with pytest.raises(ConfigError, match="node=1000 is not blocked; blocked are \\['1001'\\]"):
        blocked.change("1000", blocked=False)
    for wrong in ("[", '{"a": 1}', "[1]"):
        blocked.path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"blocked\.json"):
            wrapped.get_node_ids()
    for words in ([], [str(tmp_path)], [str(tmp_path), "node="], [str(tmp_path / "no"), "node=1"]):
        assert main(["federate", "block", *words]) == 2


def test_a_late_reply_of_a_node_that_was_blocked_meanwhile_is_not_read(tmp_path: Path):
    from flwr.app import RecordDict

    class Answers(InProcessGrid):
        def send_and_receive(self, messages: Any, *, timeout: Any = None) -> list[Message]:
            BlockList(tmp_path).change("1001", blocked=True)
            return [Message(RecordDict(), reply_to=message) for message in messages]

    grid = BlockingGrid(Answers(client_app(TASK), 2), BlockList(tmp_path))
    sent = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1000, 1001)]
    assert [m.metadata.src_node_id for m in grid.send_and_receive(sent)] == [1000]


def test_a_log_line_is_one_line_with_its_error_and_the_logger_is_as_before(tmp_path: Path):
    logger = logging.getLogger("protocl.somewhere")
    level = logging.getLogger("protocl").level
    with json_log(tmp_path / "new" / "log.jsonl"):
        try:
            raise ValueError("zwei\nZeilen ä")
        except ValueError:
            logger.exception("failed %s", {1}, extra={"fields": {"limits": Limits()}})
    logger.error("not in it")
    (line,) = (tmp_path / "new" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    values = json.loads(line)
    assert values["message"] == "failed {1}"
    assert "zwei\nZeilen ä" in values["error"]
    assert "Limits" in values["limits"]
    assert logging.getLogger("protocl").level == level
    with json_log(None):
        pass
