"""The statistics of one map out of those of a joint map."""

from __future__ import annotations

from protocl.memory import PrototypeMemory
from protocl.memory.maps.joint import Joint


def member_memories(memory: PrototypeMemory) -> list[PrototypeMemory]:
    """What memories under each map alone would hold, of level ``shared`` or ``mean``.

    Args:
        memory: under a :class:`.Joint` map.
    """
    joint = memory.feature_map
    assert isinstance(joint, Joint)
    sums = memory.sums
    second = None
    if memory.level != "mean":
        pooled = memory if memory.level == "shared" else memory.at_level("shared")
        second = pooled.second_moment
    found = []
    for map, block in zip(joint.members, joint.blocks(memory.feature_dim), strict=True):
        like = PrototypeMemory(
            memory.feature_dim, "mean" if second is None else "shared", feature_map=map,
            fingerprint=memory.fingerprint, estimated=memory.estimated, moments=memory.moments,
        ).to(memory.device)  # fmt: skip
        found.append(PrototypeMemory.from_statistics(
            like, classes=memory.classes, counts=memory.counts, sums=sums[:, block],
            second_moment=None if second is None else second[block, block],
        ))  # fmt: skip
    return found
