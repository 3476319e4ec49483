"""The task of a simulation in a deployment: each node takes its part of the benchmark."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from protocl.backbones import build_backbone
from protocl.backbones.features import encode_once
from protocl.data import load_data
from protocl.data.arrays import ArrayData
from protocl.data.config import refuse_unlabelled
from protocl.data.streams import hold_out
from protocl.errors import ConfigError
from protocl.federation.client.benchmark_clients import (
    BenchmarkClients,
    number_of_clients,
    stages_of,
)
from protocl.federation.client.client import ClientData
from protocl.federation.config import FederateConfig
from protocl.federation.deploy.apps import Task
from protocl.federation.deploy.places import local_path

if TYPE_CHECKING:
    from flwr.app import Context


def benchmark_task(config: FederateConfig) -> Task:
    """What ``protocl federate`` simulates with these settings, for machines that have the data.

    Node ``partition-id`` of ``clients`` (or of ``num-partitions``, where its configuration has it)
    gets the samples that this client of the simulation has, in the same rounds.

    Args:
        config: benchmark, backbone and partition; ``federation.clients`` parts, which arrive in
            ``federation.rounds`` rounds.
    """
    config = _on_this_machine(config)
    refuse_unlabelled(config.benchmark)
    data = load_data(config.benchmark)
    if share := config.benchmark.validation:
        data = hold_out(data, share, config.seed, config.benchmark.class_order)
    backbone = partial(build_backbone, config.backbone, data.input_shape, config.seed)

    @cache
    def features() -> ArrayData:
        if config.method.needs_samples:
            return data
        return encode_once(data, backbone(), config.cache, progress=False)

    def load(context: Context) -> ClientData:
        asked = int(context.node_config.get("num-partitions", config.federation.clients))
        clients = number_of_clients(data, asked, config.partition)
        part = int(context.node_config["partition-id"])
        if not 0 <= part < clients:
            raise ConfigError(f"partition-id={part}: expected 0 to {clients - 1}, see clients")
        return _clients(config, features(), clients)(context)

    return Task(load, backbone, backbone().feature_dim, data.n_classes)


def _clients(config: FederateConfig, data: ArrayData, clients: int) -> BenchmarkClients:
    return BenchmarkClients.from_config(
        data,
        config.partition,
        clients=clients,
        rounds=config.federation.rounds,
        seed=config.seed,
        stages=stages_of(config.benchmark, config.partition, data, config.seed),
    )


def _on_this_machine(config: FederateConfig) -> FederateConfig:
    """With the paths of this machine."""
    parts: dict[str, Any] = {}
    for section, key in (("benchmark", "path"), ("backbone", "checkpoint"), ("partition", "path")):
        settings = parts.get(section, getattr(config, section))
        if (value := getattr(settings, key)) is not None:
            parts[section] = replace(settings, **{key: str(local_path(f"{section}.{key}", value))})
    return replace(config, **parts)
