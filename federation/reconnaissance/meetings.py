"""Who meets whom after each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocl.federation.reconnaissance.config import ScenarioConfig
from protocl.federation.reconnaissance.scenario import SERVER

Pairs = list[tuple[int, int]]


def meetings(
    config: ScenarioConfig, active: Sequence[set[int]], random: np.random.Generator
) -> list[Pairs]:
    """Pairs of nodes for each step, and for further steps if gossip is to reach everybody.

    Args:
        config: ``clients``, ``merge``, ``every`` and ``finish`` are read.
        active: clients with a mission, for every step.
        random: decides the pairs of gossip.
    """
    due = [(step + 1) % config.every == 0 for step in range(len(active) - 1)] + [True]
    if config.merge == "star":
        return [star(config.clients) if now else [] for now in due]
    spread = Spread(config.clients)
    rounds = []
    for clients, now in zip(active, due, strict=True):
        for client in clients:
            spread.learn(client)
        pairs = random_pairs(config.clients, random) if now else []
        rounds.append(spread.exchange(pairs))
    while config.finish and not spread.complete:
        rounds.append(spread.exchange(random_pairs(config.clients, random)))
    return rounds


def star(clients: int) -> Pairs:
    """Everybody tells the server, then the server tells everybody."""
    everyone = [(client, SERVER) for client in range(clients)]
    return everyone + [(SERVER, client) for client, _ in everyone]


def random_pairs(clients: int, random: np.random.Generator) -> Pairs:
    """Clients paired at random; one stays alone where their number is odd."""
    order = random.permutation(clients).tolist()
    return [(order[i], order[i + 1]) for i in range(0, clients - 1, 2)]


class Spread:
    """Which client has heard of which contributions.

    Args:
        clients: how many there are.
    """

    def __init__(self, clients: int) -> None:
        self._known: list[set[int]] = [set() for _ in range(clients)]
        self._made = 0

    def learn(self, client: int) -> None:
        """``client`` makes a contribution."""
        self._known[client].add(self._made)
        self._made += 1

    def exchange(self, pairs: Pairs) -> Pairs:
        """Each pair ends up with what either knows; ``pairs`` is returned."""
        for a, b in pairs:
            self._known[a] |= self._known[b]
            self._known[b] |= self._known[a]
        return pairs

    @property
    def complete(self) -> bool:
        """Whether everybody knows everything."""
        return all(len(known) == self._made for known in self._known)
