"""Where code would make the processor wait for an accelerator, found on the simulated one.

What is counted is what ``torch.cuda.set_sync_debug_mode("error")`` refuses on a GPU: operators
that need a number of the device on the host (its value, or the size of a result), and copies
between the two that are not asked for as ``non_blocking``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from avalanche.core import SupervisedPlugin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.second_device import Far

_ROOT = Path(__file__).parents[1]
_ATEN = torch.ops.aten
_WAIT = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "equal", "is_nonzero", "bincount",
    "multinomial", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "histc",
    "isin",  # of more than a few: it looks for unique values
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class HostSyncs:
    """What was counted.

    Attributes:
        found: operator and the nearest line of the product, in the order of time.
    """

    found: list[str] = field(default_factory=list)

    def note(self, operator: str) -> None:
        self.found.append(f"{operator} at {_place()}")


class _Counter(TorchDispatchMode):
    def __init__(self, syncs: HostSyncs) -> None:
        super().__init__()
        self.syncs = syncs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.syncs.note(func.__name__.split(".")[0])
        return func(*args, **kwargs)


def _waits(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    name = func.__name__.split(".")[0]
    far = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Far)]
    if name in ("_to_copy", "copy_"):
        return _copies_between(func, args, kwargs)
    if not far:
        return False
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAIT or (name in _INDEXING and (_by_mask(name, args) or _from_host(args)))


def _copies_between(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is _ATEN.copy_.default:
        target, source = isinstance(args[0], Far), isinstance(args[1], Far)
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    else:
        source = isinstance(args[0], Far)
        device = kwargs.get("device")
        target = source if device is None else torch.device(device).type == "meta"
        waits = not kwargs.get("non_blocking")
    return (source and not target) or (target and not source and waits)


def _by_mask(name: str, args: Any) -> bool:
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    # A single number put where a mask is true needs no positions.
    filled = name != "index" and len(args[1]) == 1 and args[2].numel() == 1
    return bool(masks) and not filled


def _from_host(args: Any) -> bool:
    """Whether positions of the host say what is taken: they are copied first."""
    return isinstance(args[0], Far) and any(
        i is not None and not isinstance(i, Far) for i in args[1]
    )


@contextmanager
def host_syncs() -> Iterator[HostSyncs]:
    """Count within the block, which is inside one of :func:`tests.second_device.second_device`."""
    syncs = HostSyncs()
    listed = Far.tolist

    def tolist(tensor: Far) -> Any:
        syncs.note("tolist")
        return listed(tensor)

    with mock.patch.object(Far, "tolist", tolist), _Counter(syncs):
        yield syncs


class StepWatch(SupervisedPlugin[Any]):
    """Keeps what is counted from the first iteration of each epoch to its end.

    Give it to a strategy as its last plugin.
    """

    def __init__(self, syncs: HostSyncs) -> None:
        super().__init__()
        self.syncs = syncs
        self.found: list[str] = []
        self.steps = 0
        self._marks: list[int] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._marks = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._marks.append(len(self.syncs.found))

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.steps += max(0, len(self._marks) - 1)
        if self._marks:
            self.found += self.syncs.found[self._marks[0] :]


def _place() -> str:
    frames = traceback.extract_stack()[:-2]
    ours = [frame for frame in frames if _is_product(Path(frame.filename))]
    frame = ours[-1] if ours else frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})"


def _is_product(file: Path) -> bool:
    return file.is_relative_to(_ROOT) and file.relative_to(_ROOT).parts[0] not in ("tests", ".venv")
