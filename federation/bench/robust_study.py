"""Attacks against defences, measured on digits.

Run it with ``python -m protocl.federation.bench.robust_study``.

Twenty clients share the training images (Dirichlet over classes); some of them attack. The head is
the nearest class mean on pixels, tested on the 450 test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig
from protocl.data.digits import load_digits
from protocl.federation.client.partition import PartitionConfig, assign
from protocl.federation.robust.attacks import ATTACKS
from protocl.federation.robust.rules import RobustMerge
from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory

CLIENTS = 20
ATTACKERS = {"Sybils": 12}
"""Attackers by attack; six elsewhere. With fewer than half, Sybils are a plain label flip."""

SEEDS = (1, 2, 3)


def exact_sum(memories: Sequence[PrototypeMemory]) -> PrototypeMemory:
    """Merge by the exact sum: no defence."""
    total = memories[0].empty_like()
    for memory in memories:
        total.merge(memory)
    return total


Defence = Callable[[Sequence[PrototypeMemory]], PrototypeMemory]

DEFENCES: dict[str, Defence] = {
    "none (exact sum)": exact_sum,
    "norm bound": RobustMerge("mean", max_norm=1.5),
    "count cap": RobustMerge("mean", max_count=2.0),
    "trimmed mean": RobustMerge("trimmed_mean", trim=0.35),
    "geometric median": RobustMerge("geometric_median"),
    "consistency": RobustMerge("mean", min_consistency=0.6),
    "consistency, count cap": RobustMerge("mean", min_consistency=0.6, max_count=2.0),
    "shared votes": RobustMerge("mean", share_votes=True),
    "all": RobustMerge(
        "geometric_median", max_norm=1.5, max_count=2.0, min_consistency=0.6, share_votes=True
    ),
}


@dataclass(frozen=True)
class StudyRow:
    """Accuracies of one defence.

    Attributes:
        defence: its name.
        accuracy: attack -> one accuracy a seed; ``"none"`` is without attackers.
    """

    defence: str
    accuracy: dict[str, list[float]]


def study(seeds: Sequence[int] = SEEDS, alpha: float = 1.0) -> list[StudyRow]:
    """Every attack against every defence.

    Args:
        seeds: of the partition, the choice of attackers and their noise.
        alpha: of the Dirichlet partition; small values give each client few classes.
    """
    data = load_digits(BenchmarkConfig())
    rows = [StudyRow(name, {attack: [] for attack in ("none", *ATTACKS)}) for name in DEFENCES]
    for seed in seeds:
        honest = _clients(data, alpha, seed)
        for attack in ("none", *ATTACKS):
            sent = attacked(honest, attack, seed)
            for row in rows:
                row.accuracy[attack].append(_accuracy(DEFENCES[row.defence](sent), data))
    return rows


def attacked(honest: Sequence[PrototypeMemory], attack: str, seed: int) -> list[PrototypeMemory]:
    """Contributions that the server receives under ``attack`` (``"none"`` for the truth)."""
    if attack == "none":
        return list(honest)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(honest), generator=generator)[: ATTACKERS.get(attack, 6)].tolist()
    sent = list(honest)
    lies = ATTACKS[attack]([honest[client] for client in chosen], generator)
    for client, lie in zip(chosen, lies, strict=True):
        sent[client] = lie
    return sent


def _clients(data: ArrayData, alpha: float, seed: int) -> list[PrototypeMemory]:
    features, config = _pixels(data.x_train), PartitionConfig("dirichlet", alpha=alpha)
    return [
        PrototypeMemory(features.shape[1]).update(features[rows], data.y_train[rows])
        for rows in map(torch.from_numpy, assign(data.y_train, CLIENTS, config, seed))
    ]


def _accuracy(memory: PrototypeMemory, data: ArrayData) -> float:
    predicted = NearestMean().fit(memory).predict(_pixels(data.x_test))
    return float((predicted == data.y_test).to(torch.float64).mean())


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def _main() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description="Attacks against defences on digits.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet partition")
    args = parser.parse_args()
    table = Table(title=f"accuracy (%), {CLIENTS} clients", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("defence", min_width=len("consistency,"))
    for attack in ("no attack", *ATTACKS):
        table.add_column(attack, justify="right")
    for row in study(args.seeds, args.alpha):
        cells = [
            f"{100 * mean(values):.1f}"
            + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")
            for values in row.accuracy.values()
        ]
        table.add_row(row.defence, *cells)
    Console().print(table)


if __name__ == "__main__":
    _main()
