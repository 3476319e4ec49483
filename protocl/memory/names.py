"""Class ids of classes that are known by name."""

from __future__ import annotations

import hashlib


def class_id_of(name: str) -> int:
    """The class id that everybody gives to ``name``: 62 bits of its SHA-256.

    Who shares names rather than numbers needs no agreement beforehand, and a merged memory does not
    depend on who came first.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
