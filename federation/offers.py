"""What a protected client must not lose: what it offered last, and who it is.

Fresh noise on samples that were offered before would be a second release of them, so an offer is on
disk before it leaves, and is repeated as it is until the server's sum holds it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protocl.errors import DataError
from protocl.storage import atomic_path

_FORMAT = "protocl-offer-1"


def new_identity() -> str:
    """A random name by which the server knows a client again."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Offer:
    """The statistics of some parts of a client's data, with the noise that they were given.

    Attributes:
        vector: ``(layout.size,)`` int64.
        start, end: the parts from ``start`` on and before ``end``.
        client: the client's identity.
        sums: sessions of the secure sums for which it left the client under masks.
    """

    vector: NDArray[np.int64]
    start: int
    end: int
    client: str
    sums: tuple[str, ...] = ()

    @property
    def span(self) -> dict[str, Any]:
        """All but the vector."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


class OffersOnDisk:
    """One file a client, replaced as a whole.

    Args:
        folder: made when needed.
        terms: of the federation (:func:`protocl.federation.private_release.terms_of`).
    """

    def __init__(self, folder: Path, terms: str) -> None:
        self.folder = folder
        self.terms = terms

    def load(self, name: str) -> Offer | None:
        """The last offer of the client ``name``, or None.

        Raises:
            DataError: the file is damaged, or holds an offer under other terms.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="np") as file:
                header = file.metadata() or {}
                vector = file.get_tensor("vector")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from error
        if header.get("format") != _FORMAT or header["terms"] != self.terms:
            raise DataError(
                f"{path} is an offer to another federation: of other classes or statistics, with "
                f"other noise, or of another backbone; {_REMEDY}"
            )
        span = json.loads(header["state"])
        return Offer(vector, **{**span, "sums": tuple(span["sums"])})

    def save(self, name: str, offer: Offer) -> None:
        """Keep ``offer`` in place of the one before."""
        header = {"format": _FORMAT, "terms": self.terms, "state": json.dumps(offer.span)}
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file({"vector": offer.vector}, temporary, metadata=header)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.offer.safetensors"


_REMEDY = (
    "restore it, or delete it and the client offers all its data once more, which with noise is a "
    "second release of them"
)
