"""What a protected client must not lose: what it offered last, who it is, and its secrets.

Fresh noise on samples that were offered before would be a second release of them, so an offer is on
disk before it leaves, and is repeated as it is until the server's sum holds it. The secrets of the
secure sum that it is in are kept until the next one begins: the server asks for the shares until it
has enough.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protocl.errors import DataError
from protocl.io.atomic import atomic_path, atomic_write

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
        new: whether there are samples in these parts; a vector of none hides nobody.
        sums: sessions of the secure sums for which it left the client under masks.
        spent: whether the client gave its shares of a sum that the vector is in.
    """

    vector: NDArray[np.int64]
    start: int
    end: int
    client: str
    new: bool = True
    sums: tuple[str, ...] = ()
    spent: bool = False

    def is_free(self, unfinished: Collection[str]) -> bool:
        """Whether it may be given for a sum without being told apart in the difference to another.

        Args:
            unfinished: sums whose shares nobody was asked for while the vector was in them.
        """
        return not self.spent and set(self.sums) <= set(unfinished)

    @property
    def span(self) -> dict[str, Any]:
        """The offer without its vector."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


class OffersOnDisk:
    """Offers on disk: a file for each client, replaced as a whole.

    Args:
        folder: made when needed.
        terms: of the federation (:func:`protocl.federation.privacy.release.terms_of`).
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

    def load_party(self, name: str) -> dict[str, Any] | None:
        """The party of a secure sum that the client ``name`` was, or None.

        Raises:
            DataError: the file is damaged.
        """
        path = self._party_path(name)
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            secret = {key: bytes.fromhex(value) for key, value in values["bytes"].items()}
            return {**values["others"], **secret}
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{path} is damaged: {error}; delete it, and the secure sum that this client was "
                "in last goes on without its shares"
            ) from error

    def save_party(self, name: str, party: Mapping[str, Any]) -> None:
        """Keep the party of the secure sum that the client is in, in place of the one before."""
        secret = {key: value.hex() for key, value in party.items() if isinstance(value, bytes)}
        others = {key: value for key, value in party.items() if key not in secret}
        path = self._party_path(name)
        atomic_write(path, json.dumps({"bytes": secret, "others": others}))

    def drop_party(self, name: str) -> None:
        """Delete the secrets of a sum that is over."""
        self._party_path(name).unlink(missing_ok=True)

    def _party_path(self, name: str) -> Path:
        return self.folder / f"{name}.party.json"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.offer.safetensors"


_REMEDY = (
    "restore it, or delete it and the client offers all its data once more, which with noise is a "
    "second release of them"
)
