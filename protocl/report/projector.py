"""Prototypes in TensorBoard's projector."""

from __future__ import annotations

import os
from collections.abc import Sequence

from protocl.memory import PrototypeMemory


def write_projector(
    memory: PrototypeMemory,
    log_dir: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    step: int = 0,
) -> None:
    """Write the prototypes of a memory for the projector tab of ``tensorboard --logdir``.

    Args:
        memory: its means are the points.
        log_dir: folder of events; several calls with different ``step`` may share it.
        class_names: name of each class id; the ids themselves by default.
        step: number of the point in time.

    Raises:
        ValueError: the memory is empty.
    """
    from torch.utils.tensorboard import SummaryWriter

    if len(memory) == 0:
        raise ValueError("write_projector: the memory is empty; update it with features first")
    ids = memory.classes.tolist()
    names = [str(c) if class_names is None else class_names[c] for c in ids]
    rows = [[name, str(count)] for name, count in zip(names, memory.counts.tolist(), strict=True)]
    with SummaryWriter(os.fspath(log_dir)) as events:
        events.add_embedding(
            memory.means.float(), metadata=rows, metadata_header=["class", "samples"],
            global_step=step, tag="prototypes",
        )  # fmt: skip
