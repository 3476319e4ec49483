"""From class ids, which are arbitrary, to the rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor


def find_rows(class_ids: Tensor, labels: Tensor) -> Tensor:
    """Rows ``(N,)`` at which ``labels`` ``(N,)`` stand in ``class_ids`` ``(K,)``, in any order.

    Raises:
        ValueError: a label is not among the class ids. On an accelerator this is an assertion on
            the device instead, for an answer would have to be waited for in each training step.
    """
    on_host = labels.device.type == "cpu"
    if on_host or len(class_ids) == 0:
        missing = set(labels.tolist()) - set(class_ids.tolist())
        if missing:
            raise ValueError(
                f"classes {sorted(missing)} have no row: expected classes that were added before, "
                "such as those of this or an earlier experience"
            )
    if len(labels) == 0:
        return labels
    order = class_ids.argsort()
    places = torch.searchsorted(class_ids[order], labels).clamp(max=len(class_ids) - 1)
    rows = order[places]
    if not on_host:
        torch._assert_async((class_ids[rows] == labels).all())
    return rows
