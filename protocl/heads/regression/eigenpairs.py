"""Ridge regression in the directions of the eigenpairs that a memory keeps: LoRanPAC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocl.heads.regression.equations import PLAIN, Form
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.eigenpairs import LowRankMemory

if TYPE_CHECKING:
    from protocl.heads.base import Head


def require_low_rank(rank: int, share: float, form: Form) -> None:
    """Refuse settings that eigenpairs cannot serve.

    Raises:
        ValueError: ``rank`` or ``share`` is out of range, or ``form`` is not plain.
    """
    LowRankMemory(1, rank=rank, share=share)  # refuses what is out of range
    if form != PLAIN:
        given = next(
            f"{name}={value!r}"
            for (name, value), plain in zip(form._asdict().items(), PLAIN, strict=True)
            if value != plain
        )
        raise ValueError(
            f"{given} takes the whole second moment, of which rank={rank} keeps eigenpairs alone: "
            "leave one of the two out"
        )


def low_rank_memory(
    head: Head, feature_dim: int, rank: int, share: float, options: Mapping[str, Any]
) -> LowRankMemory:
    """An empty memory of eigenpairs for a head, refusing what they cannot do.

    Args:
        head: gives the feature map.
        feature_dim: ``D``.
        rank, share: of the eigenpairs.
        options: those of :meth:`.Head.new_memory`.

    Raises:
        ValueError: fixed point, another level or calibration is asked for.
    """
    wishes = {
        "exact=True": (options.get("exact"), "eigenpairs are no sums, which fixed point is for"),
        f"level={options.get('level')!r}": (
            options.get("level") not in (None, "mean"),
            "eigenpairs cannot be split by class, nor forget",
        ),
        "calibrated=True": (options.get("calibrated"), "eigenpairs tell no scatter"),
    }
    for wish, (asked, reason) in wishes.items():
        if asked:
            raise ValueError(f"{wish} with rank={rank}: {reason}; leave one of the two out")
    return LowRankMemory(
        feature_dim, rank=rank, share=share, feature_map=head.feature_map(feature_dim),
        fingerprint=options.get("fingerprint"),
    )  # fmt: skip


def require_eigenpairs(memory: PrototypeMemory, rank: int, share: float) -> None:
    """Refuse statistics other than eigenpairs of these bounds.

    Raises:
        ValueError: they are.
    """
    kept = f"sums of level '{memory.level}'"
    if isinstance(memory, LowRankMemory):
        if (memory.rank, memory.share) == (rank, share):
            return
        kept = f"those of rank={memory.rank}, share={memory.share:g}"
    raise ValueError(
        f"Ridge(rank={rank}, share={share:g}) needs that many eigenpairs, got {kept}; "
        "make the memory with head.new_memory(feature_dim)"
    )
