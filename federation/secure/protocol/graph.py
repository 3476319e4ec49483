"""Who shares with whom where not everybody shares with everybody.

Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead" (CCS 2020): a random
``k``-regular graph on the parties takes the place of the complete one. Theirs is the circulant
graph (Harary's) on a random permutation: parties sit on a circle in random order, and each is
joined with the ``k / 2`` next on either side.

Of ``n`` parties up to ``c = floor(gamma n)`` collude with the server and up to ``g = floor(delta
n)`` leave, chosen independently of the graph. Secrets are shared so that ``t`` neighbours can join
them. With ``X`` colluding neighbours of a party, hypergeometric ``(n - 1, c, k)``, and ``Y``
neighbours that stay, hypergeometric ``(n - 1, n - 1 - g, k)``, the graph is good if (their
definitions 3.2 to 3.4 and theorem 3.10)

1. ``n P[X >= t] <= 2^-(sigma + 1)``: no party has ``t`` colluding neighbours, who could join its
   secrets;
2. the honest who stay are connected, but for ``2^-(sigma + 1)``. To cut the circle takes ``k / 2``
   in a row who collude or leave, in two places, of which there are ``n (n - k - 1) / 2`` pairs:
   ``n (n - k - 1) / 2 * C(n - k, b - k) / C(n, b) <= 2^-(sigma + 1)`` with ``b = c + g``;
3. ``n P[Y < t] <= 2^-eta``: enough neighbours of everybody stay.

All three are union bounds over exact tails, 1 and 3 over parties, 2 over pairs of places; there is
no Chernoff bound in them. The least even ``k`` for which some ``t`` meets them is taken. The pair
count in 2, sharper than the bound in the paper, is that of its authors' own implementation
(google-parfait, ``federated-compute``, ``fcp/secagg/server/graph_parameter_finder.cc``, there with
``eta = 20``).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scipy.special import gammaln
from scipy.stats import hypergeom

SIGMA = 40
"""Secrets are safe but for a probability of 2^-40 over the graph."""

ETA = 30
"""A sum succeeds but for a probability of 2^-30 over the graph."""


@dataclass(frozen=True)
class Neighbourhood:
    """How many neighbours each party has, and how many of them join its secrets."""

    degree: int
    threshold: int


@lru_cache(maxsize=64)
def sparse_neighbourhood(parties: int, colluding: float, leaving: float) -> Neighbourhood | None:
    """The smallest good neighbourhood; None where none has less than half of all pairs.

    Args:
        parties: ``n``, how many enrolled.
        colluding: ``gamma``, share of the parties that may pool what they know with the server.
        leaving: ``delta``, share of them that may leave before the end.
    """
    for degree in range(2, parties // 2, 2):
        bad = share_of(parties, colluding) + share_of(parties, leaving)
        if _log2_disconnected(parties, degree, bad) > -(SIGMA + 1):
            continue
        threshold = _safe_threshold(parties, degree, share_of(parties, colluding))
        stay = hypergeom(parties - 1, parties - 1 - share_of(parties, leaving), degree)
        if parties * stay.cdf(threshold - 1) <= 2.0**-ETA:
            return Neighbourhood(degree, threshold)
    return None


def share_of(parties: int, share: float) -> int:
    """How many whole parties a share of them is; 0.2 of 10 is 2 whatever its binary digits."""
    return math.floor(share * parties + 1e-9)


def circulant(parties: Iterable[int], degree: int) -> dict[int, frozenset[int]]:
    """The neighbours of each party, ``degree`` of them, on a circle in random order.

    Args:
        parties: identities.
        degree: even, below the number of parties.
    """
    circle = list(parties)
    secrets.SystemRandom().shuffle(circle)
    reach = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    size = len(circle)
    return {
        party: frozenset(circle[(place + step) % size] for step in reach)
        for place, party in enumerate(circle)
    }


def _log2_disconnected(parties: int, degree: int, bad: int) -> float:
    """Bound on the probability that the honest who stay are cut into parts (condition 2)."""
    if degree > bad:
        return -math.inf
    pairs = math.log(parties * (parties - degree - 1) / 2)
    chosen = gammaln(bad + 1) + gammaln(parties - degree + 1)
    among = gammaln(parties + 1) + gammaln(bad - degree + 1)
    return float(pairs + chosen - among) / math.log(2)


def _safe_threshold(parties: int, degree: int, colluders: int) -> int:
    """The least ``t`` of condition 1; at least 2, and more than the degree where there is none."""
    colluding = hypergeom(parties - 1, colluders, degree)
    threshold = 2
    while parties * colluding.sf(threshold - 1) > 2.0 ** -(SIGMA + 1):
        threshold += 1
    return threshold
