"""What this federation learns, and from which data: the file to edit.

Run on every node: :func:`load` must find the node's own data, and :func:`new_backbone` must give
the same on all nodes. As delivered, each node takes its part of scikit-learn's digits.
"""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context
from torch import nn

from protocl.backbones import BackboneConfig, build_backbone
from protocl.data import BenchmarkConfig, load_data
from protocl.federation import ClientData
from protocl.federation.benchmark_clients import BenchmarkClients
from protocl.federation.deployed import Task
from protocl.federation.partition import PartitionConfig

FEATURES, CLASSES = 64, 10
PARTS = 10
"""In which a node's data arrive, one a round. It stays: nodes remember how many they counted."""


def load(context: Context) -> ClientData:
    """The data of this node; chunk ``t`` counts from round ``t + 1`` on.

    For data of your own return ``ClientData(chunks=[(features, labels), ...])``; with
    ``class_names`` classes are shared by name, however each node numbers them (a protected
    federation must know them all: ``Task(..., class_names=NAMES)``).
    """
    nodes = int(context.node_config["num-partitions"])
    return _digits(nodes)(context)


def new_backbone() -> nn.Module:
    """The frozen backbone that makes the features; here the pixels are."""
    return build_backbone(BackboneConfig(), (FEATURES,), 0)


task = Task(load, new_backbone, feature_dim=FEATURES, n_classes=CLASSES)


@lru_cache(maxsize=1)
def _digits(nodes: int) -> BenchmarkClients:
    data = load_data(BenchmarkConfig(name="digits"))
    flat = data.with_samples(data.x_train.flatten(1), data.x_test.flatten(1))
    partition = PartitionConfig("iid", growth="samples")
    return BenchmarkClients.from_config(flat, partition, clients=nodes, rounds=PARTS, seed=0)
