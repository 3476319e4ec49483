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
from protocl.federation.client.benchmark_clients import BenchmarkClients
from protocl.federation.client.partition import PartitionConfig
from protocl.federation.deploy.apps import Task

FEATURES, CLASSES = 64, 10
PARTS = 10
"""In which a node's data arrive, one a round. It stays: nodes remember how many they counted."""


def load(context: Context) -> ClientData:
    """The data of this node; chunk ``t`` counts from round ``t + 1`` on.

    A chunk is **features**, ``(N, FEATURES)`` float32 as :func:`new_backbone` gives them, and
    labels ``(N,)``; samples only with ``method.distribute=true``. With ``class_names`` classes are
    shared by name, however each node numbers them (a protected federation must know them all:
    ``Task(..., class_names=NAMES)``). From a folder of images, with ``FEATURES = 1280``::

        def load(context):
            folder = str(context.node_config["images"])  # --node-config "images='/data/photos'"
            data = load_data(BenchmarkConfig("image_folder", path=folder, image_size=224))
            data = encode_once(data, new_backbone(), cache="~/.cache/protocl/features")
            return ClientData([(data.x_train, data.y_train)], class_names=data.class_names)

        def new_backbone():
            return build_backbone(BackboneConfig("efficientnet_lite0"), (3, 224, 224), 0)

    where ``encode_once`` is of :mod:`protocl.backbones.features`.
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
