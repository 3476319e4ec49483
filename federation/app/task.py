"""What this federation learns, and from which data: the file to edit.

Run on every node: :func:`load` must find the node's own data, and :func:`new_memory` must say the
same on all nodes. As delivered, each node takes its part of scikit-learn's digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from flwr.app import Context

from protocl import PrototypeMemory
from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.data import BenchmarkConfig, load_data
from protocl.federation import ClientData
from protocl.federation.benchmark_clients import BenchmarkClients
from protocl.federation.partition import PartitionConfig
from protocl.heads.base import Head
from protocl.registry import HEADS

FEATURES = 64


def load(context: Context) -> ClientData:
    """The data of this node; chunk ``t`` counts from round ``t + 1`` on.

    For data of your own return ``ClientData(chunks=[(features, labels), ...])``; with
    ``class_names`` classes are shared by name, however each node numbers them.
    """
    nodes = int(context.node_config["num-partitions"])
    return _digits(nodes, int(context.run_config["rounds"]))(context)


def new_head(run_config: Mapping[str, Any]) -> Head:
    """The head that classifies; it decides which statistics are exchanged."""
    head: Head = HEADS.get(str(run_config["head"]))()
    return head


def new_memory(run_config: Mapping[str, Any]) -> PrototypeMemory:
    """An empty memory: width, statistics, arithmetic and backbone of this federation."""
    backbone = build_backbone(BackboneConfig(), (FEATURES,), 0)
    return new_head(run_config).new_memory(
        FEATURES, exact=bool(run_config["exact"]), fingerprint=fingerprint(backbone)
    )


@lru_cache(maxsize=1)
def _digits(nodes: int, rounds: int) -> BenchmarkClients:
    data = load_data(BenchmarkConfig(name="digits"))
    flat = data.with_samples(data.x_train.flatten(1), data.x_test.flatten(1))
    partition = PartitionConfig("iid", growth="samples")
    return BenchmarkClients.from_config(flat, partition, clients=nodes, rounds=rounds, seed=0)
