"""From names of classes to their ids, which are arbitrary, and to the rows of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def class_id_of(name: str) -> int:
    """The class id that everybody gives to ``name``: 62 bits of its SHA-256.

    Who shares names rather than numbers needs no agreement beforehand, and a merged memory does not
    depend on who came first.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2


def class_id_tensor(classes: int | Iterable[int] | Tensor) -> Tensor:
    """Class ids ``(K,)`` as an int64 tensor; a single one stands for itself.

    Raises:
        TypeError: they are no integers. A mask counts as none: taken for ids it would mean the
            classes 0 and 1.
    """
    # A tensor as it is: one by one its values would each wait for the device.
    if isinstance(classes, Tensor):
        values: Any = classes.reshape(-1)
    elif isinstance(classes, Iterable) and not isinstance(classes, str | bytes):
        values = list(classes)
    else:
        values = [classes]
    try:
        ids = torch.as_tensor(values, dtype=None if len(values) else torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"classes={values!r}: expected integer class ids") from error
    if ids.dtype == torch.bool:
        raise TypeError(
            "classes are a boolean mask: expected integer class ids, such as memory.classes[mask]"
        )
    if len(values) and (ids.is_floating_point() or ids.is_complex()):
        raise TypeError(f"classes have dtype {ids.dtype}: expected integer class ids")
    return ids.to(torch.int64)


def groups_of(classes: Iterable[int], means: int) -> frozenset[int]:
    """The ids that groups of some classes may have, ``means`` each (:class:`.SubSamples`)."""
    return frozenset(class_id * means + group for class_id in classes for group in range(means))


def present_groups(groups: Iterable[int], ids: Tensor, means: int) -> list[int]:
    """Those of ``groups`` that are among ``ids``, sorted; a small class fills only some.

    Raises:
        KeyError: there is none of a class whose groups these are.
    """
    wanted = set(groups)
    found = wanted & set(ids.tolist())
    missing = {group // means for group in wanted} - {group // means for group in found}
    if missing:
        raise KeyError(f"classes {sorted(missing)} are not in the memory")
    return sorted(found)


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
