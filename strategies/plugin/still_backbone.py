"""A backbone that is frozen by ``requires_grad_(False)`` may move all the same: by its buffers.

BatchNorm's running averages, the vectors of a spectral norm and the like are updated by every
forward pass in training mode, whether or not a parameter is trained.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from protocl.strategies.plugin.feature_hook import FeaturePoint


class StillBackbone:
    """Notices buffers that move in a frozen backbone, puts them back and holds them.

    The layers whose buffers moved are kept in evaluation mode while their host trains.

    Attributes:
        moved: buffers moved even so, in the last experience.
    """

    def __init__(self) -> None:
        self.moved = False
        self._held: list[str] = []
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] | None = None
        self._checked = False

    def begin(self, model: nn.Module) -> None:
        """Remember all buffers before an experience; hosts may run the model on their own then."""
        self.moved, self._before, self._checked = False, None, False
        may_be_frozen = not all(weight.requires_grad for weight in model.parameters())
        buffers = model.named_buffers() if may_be_frozen else ()
        self._start = {name: value.clone() for name, value in buffers}

    def before_forward(self, model: nn.Module, point: FeaturePoint) -> None:
        """Put layers that moved in evaluation mode, before each forward pass in training."""
        if self._before is None:
            frozen = _is_frozen(model, point)
            kept = (name for name in self._start if not _in_classifier(name, point))
            self._before = {name: self._start[name] for name in kept} if frozen else {}
            self._held = self._held if frozen else []
            self._start = {}
        for path in self._held:
            layer = model.get_submodule(path)
            if layer.training:  # by the host, which may have run it (GEM does)
                self._put_back(model, [f"{path}.{name}" for name, _ in layer.named_buffers()])
            layer.training = False

    def _put_back(self, model: nn.Module, names: list[str]) -> None:
        for name in names:
            if self._before and name in self._before:
                model.get_buffer(name).copy_(self._before[name])

    def after_forward(self, model: nn.Module) -> None:
        """Put back whatever moved in the first forward pass, and hold it from now on."""
        if self._checked or not self._before:
            return
        self._checked = True
        moved = _moved(model, self._before)
        self._put_back(model, moved)
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in moved))
        self._held += [layer for layer in layers if layer not in self._held]
        if layers:
            warnings.warn(
                f"the backbone's weights are frozen, but {layers[0]} ({moved[0]}) moves in "
                f"training mode: {len(layers)} layer(s) are kept in evaluation mode, or old "
                "prototypes would be of another backbone; to train it, leave requires_grad on",
                stacklevel=2,
            )

    def end_epoch(self, model: nn.Module) -> None:
        """Give held layers their mode back."""
        for path in self._held:
            model.get_submodule(path).training = True

    def end(self, model: nn.Module) -> None:
        """Warn of buffers that moved in an experience even so."""
        moved = _moved(model, self._before or {})
        self.moved = bool(moved)
        if moved:
            warnings.warn(
                f"the backbone's weights are frozen, but its buffer {moved[0]} moves even in "
                "evaluation mode: prototypes of earlier experiences are of another backbone; hold "
                "it still, or carry them over with DriftCompensation",
                stacklevel=2,
            )
        self._before = None


def _is_frozen(model: nn.Module, point: FeaturePoint) -> bool:
    """Whether the backbone has weights, none of which trains."""
    weights = [p for name, p in model.named_parameters() if not _in_classifier(name, point)]
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def _in_classifier(name: str, point: FeaturePoint) -> bool:
    return not point.after and (point.path == "" or name.startswith(f"{point.path}."))


def _moved(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Names of the buffers that are no longer what they were."""
    now = dict(model.named_buffers())
    kept = ((name, now[name], value) for name, value in before.items() if name in now)
    return [name for name, one, other in kept if not torch.equal(one, other)]
