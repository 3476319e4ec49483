"""The statistics of one map out of those of a joint map."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.maps.joint import Joint
from protocl.memory.symmetric import block_triangles


def member_memories(memory: PrototypeMemory) -> list[PrototypeMemory]:
    """What memories under each map alone would hold, of level ``shared`` or ``mean``.

    The whole second moment, of which they are blocks on the diagonal, is not made.

    Args:
        memory: under a :class:`.Joint` map.
    """
    joint = memory.feature_map
    assert isinstance(joint, Joint)
    level: Level = "shared" if memory.provides("shared") else "mean"
    pooled = memory if memory.level == level else memory.at_level(level)
    parts, found = pooled.parts(), []
    for map, block in zip(joint.members, joint.blocks(memory.feature_dim), strict=True):
        like = PrototypeMemory(
            memory.feature_dim, level, feature_map=map, exact=memory.exact,
            step=memory.step, moments=memory.moments, fingerprint=memory.fingerprint,
            estimated=memory.estimated,
        ).to(memory.device)  # fmt: skip
        found.append(PrototypeMemory.from_parts(like, _within(parts, memory.width, block)))
    return found


def _within(parts: Mapping[str, Tensor], width: int, block: slice) -> dict[str, Tensor]:
    """Those numbers of ``parts`` that are of the features of ``block``."""
    found = dict(parts)
    for name in parts.keys() - {"class_ids", "count"}:
        second = name.startswith("second")
        part = parts[name]
        found[name] = block_triangles(part, width, block) if second else part[:, block]
    return found
