"""Who holds which training samples, and from which round on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from protocl.config.validation import POSITIVE, SHARE, ranged, require_declared
from protocl.errors import ConfigError, DataError, as_config_error
from protocl.registry import unknown_name

Rows = NDArray[np.int64]
GIVEN = "client"
"""The partition that the data say themselves."""


@dataclass
class PartitionConfig:
    """How samples are shared out (keys ``partition.*``).

    Attributes:
        name: ``classes`` (each client holds some classes only), ``dirichlet`` (each class is
            shared out in proportions drawn from a Dirichlet distribution), ``iid`` (equal random
            parts), ``client`` (as the data say, such as a column of a table), ``file``, or
            ``flwr`` for a partitioner of ``flwr-datasets``.
        classes_per_client: for ``classes``.
        overlap: for ``classes``: share of each client's classes, in [0, 1], that all clients have
            in common; the rest is dealt out in turn.
        alpha: concentration of ``dirichlet``, > 0; small values give each client few classes.
        min_samples: for ``dirichlet``: draw again until every client has so many.
        path: for ``file``: a JSON list with one list of training sample numbers a client.
        partitioner: for ``flwr``: class name, such as ``PathologicalPartitioner``.
        options: for ``flwr``: its arguments besides number of clients, label column and seed.
        growth: ``none`` (all samples are there from the first round on), ``samples`` (a client's
            samples arrive in equal parts, one a round), ``classes`` (a client's classes arrive
            one after the other) or ``stream`` (all clients meet the same classes in the same
            round, as in a class-incremental stream).
    """

    name: str = "classes"
    classes_per_client: int = 2
    overlap: float = ranged(0.0, SHARE)
    alpha: float = ranged(0.1, POSITIVE)
    min_samples: int = 1
    path: str | None = None
    partitioner: str = "DirichletPartitioner"
    options: dict[str, Any] = field(default_factory=dict)
    growth: Literal["none", "samples", "classes", "stream"] = "none"


def assign(
    labels: Tensor,
    clients: int,
    config: PartitionConfig,
    seed: int,
    held_by: Tensor | None = None,
) -> list[Rows]:
    """Row numbers of the samples of each client, ascending.

    Args:
        labels: ``(N,)`` class ids.
        clients: number of clients.
        config: how.
        seed: of all that is random.
        held_by: ``(N,)`` number of the client of each sample, for ``client``.

    Returns:
        One array a client. No sample is given to two; ``file`` may leave samples out.

    Raises:
        ConfigError: a value is out of range, or samples cannot be shared out so.
        DataError: the file is absent or does not fit.
    """
    with as_config_error("partition."):
        require_declared(config)
    if clients < 1:
        raise ConfigError(f"clients={clients}: expected at least 1")
    if config.name == GIVEN and held_by is not None:
        holders = held_by.numpy()
        return [np.flatnonzero(holders == client).astype(np.int64) for client in range(clients)]
    if config.name not in _PARTITIONS:
        raise unknown_name("partition", config.name, [*_PARTITIONS, GIVEN])
    random = np.random.default_rng([seed, 1])
    parts = _PARTITIONS[config.name](labels.numpy(), clients, config, random)
    return [np.sort(part).astype(np.int64) for part in parts]


def schedule(
    labels: Tensor,
    rows: Rows,
    rounds: int,
    growth: str,
    seed: int,
    stages: Sequence[Sequence[int]] = (),
) -> list[Rows]:
    """The rows of one client in the order in which they arrive, a part for each round.

    Args:
        labels: ``(N,)`` class ids of all samples.
        rows: rows of the client.
        rounds: number of parts.
        growth: see :class:`PartitionConfig`.
        seed: of all that is random; give each client another.
        stages: for ``stream``: the classes of each experience, at most ``rounds`` of them. An
            experience lasts ``rounds / len(stages)`` rounds and its samples arrive with the first.

    Raises:
        ConfigError: ``growth`` is unknown, or there are more stages than rounds.
    """
    random = np.random.default_rng([seed, 2])
    none = rows[:0]
    if growth == "none":
        return [rows, *[none] * (rounds - 1)]
    if growth == "samples":
        parts = np.array_split(random.permutation(rows), rounds)
        return [np.sort(part) for part in parts]
    own = labels.numpy()[rows]
    if growth == "classes":
        groups = np.array_split(random.permutation(np.unique(own)), rounds)
        return [rows[np.isin(own, group)] for group in groups]
    if growth == "stream":
        starts = stage_starts(len(stages), rounds)
        arriving = dict(zip(starts, stages, strict=True))
        return [
            rows[np.isin(own, list(arriving[number]))] if number in arriving else none
            for number in range(1, rounds + 1)
        ]
    raise unknown_name("growth", growth, ("none", "samples", "classes", "stream"))


def stage_starts(stages: int, rounds: int) -> list[int]:
    """The round, from 1, in which each stage begins.

    Raises:
        ConfigError: there are more stages than rounds.
    """
    if stages > rounds:
        raise ConfigError(
            f"rounds={rounds}: a stream of {stages} experiences needs at least {stages} rounds; "
            "raise rounds, or lower benchmark.n_experiences"
        )
    return [1 + stage * rounds // stages for stage in range(stages)]


# -- partitions ---------------------------------------------------------------------------------


def _iid(
    labels: Rows, clients: int, config: PartitionConfig, random: np.random.Generator
) -> list[Rows]:
    return np.array_split(random.permutation(len(labels)), clients)


def _classes(
    labels: Rows, clients: int, config: PartitionConfig, random: np.random.Generator
) -> list[Rows]:
    """Deal out classes in turn from a shuffled pack; owners of a class share its samples."""
    pack = random.permutation(np.unique(labels))
    each = config.classes_per_client
    if not 1 <= each <= len(pack):
        raise ConfigError(
            f"partition.classes_per_client={each}: expected 1 to {len(pack)}, the number of classes"
        )
    common = round(config.overlap * each)
    dealt, own = pack[common:], each - common
    if own * clients < len(dealt):
        raise ConfigError(
            f"{clients} clients with {own} classes of their own leave {len(dealt) - own * clients} "
            f"of {len(pack)} classes to nobody; raise clients or partition.classes_per_client"
        )
    owners: dict[int, list[int]] = {int(c): list(range(clients)) for c in pack[:common]}
    for client in range(clients):
        for place in range(own):
            owners.setdefault(int(dealt[(client * own + place) % len(dealt)]), []).append(client)
    shares: list[list[Rows]] = [[] for _ in range(clients)]
    for class_id, members in owners.items():
        parts = np.array_split(random.permutation(np.flatnonzero(labels == class_id)), len(members))
        for client, part in zip(members, parts, strict=True):
            shares[client].append(part)
    return [np.concatenate(parts) for parts in shares]


def _dirichlet(
    labels: Rows, clients: int, config: PartitionConfig, random: np.random.Generator
) -> list[Rows]:
    """Hsu et al. 2019, "Measuring the effects of non-identical data distribution"; by class."""
    if config.min_samples * clients > len(labels):
        raise ConfigError(
            f"partition.min_samples={config.min_samples}: {clients} clients cannot each have so "
            f"many of {len(labels)} samples"
        )
    for _ in range(1000):
        shares: list[list[Rows]] = [[] for _ in range(clients)]
        for class_id in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == class_id))
            proportions = random.dirichlet(np.full(clients, config.alpha))
            cuts = (np.cumsum(proportions)[:-1] * len(rows)).astype(int)
            for client, part in enumerate(np.split(rows, cuts)):
                shares[client].append(part)
        parts = [np.concatenate(share) for share in shares]
        if min(len(part) for part in parts) >= config.min_samples:
            return parts
    raise ConfigError(
        f"partition.alpha={config.alpha}: 1000 draws for {clients} clients left one with fewer "
        f"than {config.min_samples} samples; lower partition.min_samples or raise alpha"
    )


def _file(
    labels: Rows, clients: int, config: PartitionConfig, random: np.random.Generator
) -> list[Rows]:
    if config.path is None:
        raise ConfigError("partition=file needs partition.path: a JSON list with a list a client")
    path = Path(config.path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [np.array(rows, dtype=np.int64).reshape(-1) for rows in content]
    except OSError as error:
        raise DataError(f"partition.path={path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a list with one list of row numbers a client") from error
    if len(parts) != clients:
        raise DataError(f"{path} has {len(parts)} clients; clients={clients}")
    together = np.concatenate(parts)
    if len(together) and not 0 <= together.min() <= together.max() < len(labels):
        raise DataError(f"{path} names rows outside 0..{len(labels) - 1}")
    if len(np.unique(together)) != len(together):
        raise DataError(f"{path} gives a sample to two clients, or twice to one")
    return parts


def _flwr(
    labels: Rows, clients: int, config: PartitionConfig, random: np.random.Generator
) -> list[Rows]:
    """A partitioner of ``flwr-datasets``, given a table of row numbers and labels."""
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner as known
    except ImportError as error:
        raise ConfigError("partition=flwr needs: pip install flwr-datasets") from error
    kind = getattr(known, config.partitioner, None)
    if kind is None:
        raise unknown_name("partitioner", config.partitioner, known.__all__)
    accepted = signature(kind).parameters
    given = {
        "num_partitions": clients,
        "partition_by": "label",
        "seed": int(random.integers(2**31)),
    }
    try:
        made = kind(**{k: v for k, v in given.items() if k in accepted} | config.options)
        made.dataset = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
        parts = [np.array(made.load_partition(i)["row"], dtype=np.int64) for i in range(clients)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"partition.partitioner={config.partitioner}: {error}") from error
    return parts


_PARTITIONS: dict[str, Callable[[Rows, int, PartitionConfig, np.random.Generator], list[Rows]]] = {
    "classes": _classes,
    "dirichlet": _dirichlet,
    "iid": _iid,
    "file": _file,
    "flwr": _flwr,
}
