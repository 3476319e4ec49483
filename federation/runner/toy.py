"""A federation so small that a method shows in a moment what it does.

Five clients hold samples of four classes in four corners, each client of two of them: what any
one of them learns alone is half of the answer.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from protocl.federation.client.client import ClientData
from protocl.federation.client.state import StatesInProcess
from protocl.federation.config.schema import FederationConfig, FederationSetup, MethodConfig
from protocl.federation.runner.simulation import simulate

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context

CLIENTS, CLASSES = 5, 4


def learn(config: MethodConfig, rounds: int = 2) -> float:
    """Let the clients learn by a method; the accuracy on all classes after the last round.

    Of a method without a common model: of the clients, each on its own classes.

    Args:
        config: settings of the method.
        rounds: of the federation.
    """
    found = [0.0]
    x, y = samples(9, range(CLASSES))
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = config.build(_setup(rounds, Path(folder)))

        def after_round(number: int, arrays: ArrayRecord) -> None:
            if number == rounds and not config.personal:
                found.append(float((method.classify(arrays, x) == y).double().mean()))

        simulate(
            method.strategy, method.client_app, clients=CLIENTS, rounds=rounds,
            initial=method.initial, after_round=after_round,
        )  # fmt: skip
    if config.personal:
        found += [one.accuracy for one in method.personal_evaluations.values()]  # type: ignore[attr-defined]
    return round(found[-1], 3)


def samples(seed: int, classes: range | list[int]) -> tuple[Tensor, Tensor]:
    """Eight features ``(8, 2)`` of each class around its corner, and labels."""
    labels = torch.tensor([one for one in classes for _ in range(8)])
    corners = torch.stack([labels % 2, labels // 2], 1).float() * 4 - 2
    noise = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(seed))
    return corners + 0.4 * noise, labels


def load(context: Context) -> ClientData:
    """The data of the client that Flower's context describes."""
    client = int(context.node_config["partition-id"])
    own = [client % CLASSES, (client + 1) % CLASSES]
    return ClientData([samples(client, own)], test=samples(client + CLIENTS, own))


def _setup(rounds: int, folder: Path) -> FederationSetup:
    return FederationSetup(
        load=load,
        backbone=nn.Identity(),
        feature_dim=2,
        n_classes=CLASSES,
        fingerprint="",
        seed=0,
        federation=FederationConfig(clients=CLIENTS, rounds=rounds),
        states=StatesInProcess(),
        checkpoints=folder,
    )
