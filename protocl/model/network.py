"""Backbone, normalisation and head as one module, from samples to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protocl.backbones.base import Backbone
from protocl.errors import ConfigError, NotFittedError
from protocl.heads.base import Head
from protocl.tracing import exporting


class Network(nn.Module):
    """``forward(images or features) -> logits (N, C)``, columns in the order of ``head.classes``.

    In Python it answers as its parts do: samples that they refuse are refused, and large batches
    are compared with the classes block by block. An exported graph (:mod:`protocl.model.export`)
    cannot refuse: its logits are NaN for samples out of range, infinite or NaN.

    The parts are used, not copied, and put in evaluation mode.

    Args:
        backbone: gives features ``(N, D)``, through its own preprocessing where it is a
            :class:`protocl.backbones.base.Backbone`; None where samples are features.
        head: fitted to features of this backbone; or another module that gives logits of features,
            such as a trained layer. Without ids ``classes`` ``(C,)`` it needs ``class_names``.
        class_names: name of each column; None for the class ids.
        mean: subtracted from the samples, one number for each channel or feature, or one for all.
        std: divided by after that, likewise. A backbone that normalises itself takes neither.

    Raises:
        TypeError: ``head`` is no module.
        NotFittedError: the head was never fitted.
        ConfigError: names, mean or std do not fit, or the backbone normalises itself.

    Example:
        >>> from protocl.heads import NearestMean
        >>> head = NearestMean()
        >>> memory = head.new_memory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> Network(None, head.fit(memory))(torch.tensor([[0.0, 1.0]])).tolist()
        [[-2.0, 0.0]]
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        backbone: nn.Module | None,
        head: nn.Module,
        *,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _require_head(head, class_names)
        self.backbone = nn.Identity() if backbone is None else backbone
        self.head = head
        self._names = None if class_names is None else _names(class_names, head)
        self._named = self.classes
        self.register_buffer("mean", _statistic("mean", mean), persistent=False)
        self.register_buffer("std", _statistic("std", std), persistent=False)
        if any(part.normalized for part in self.parts()) and not (mean is None and std is None):
            raise ConfigError("the backbone normalises images itself: give neither mean nor std")
        self.eval()

    def forward(self, samples: Tensor) -> Tensor:
        """Logits ``(N, C)`` of images ``(N, ...)`` or features ``(N, D)``.

        Raises:
            ValueError: samples do not fit, are out of range, infinite or NaN.
        """
        normalised = self.normalised(samples)
        logits: Tensor = self.head(self.backbone(normalised))
        return self._or_nan(logits, normalised)

    def with_probabilities(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, C)``, and calibrated probabilities ``(N, C)`` float64 that sum to one.

        Raises:
            NotFittedError: ``head.calibrate`` has not been called since the head was last fitted,
                or it is no :class:`protocl.heads.Head`.
            ValueError: as :meth:`forward`.
        """
        normalised = self.normalised(samples)
        features = self.backbone(normalised)
        if not isinstance(self.head, Head):
            raise NotFittedError(f"{type(self.head).__name__} is no head: it has no calibration")
        answers = self.head(features), self.head.predict_proba(features)
        logits, probabilities = (self._or_nan(values, normalised) for values in answers)
        return logits, probabilities

    @property
    def classes(self) -> list[int]:
        """Class id of each column; of a module that knows none, its number."""
        known = _known(self.head)
        return list(range(len(self._names or ()))) if known is None else known

    @property
    def class_names(self) -> list[str]:
        """Name of each column: as given, else the class ids.

        Raises:
            ConfigError: names were given, and the head was fitted to other classes since.
        """
        if self._names is None:
            return [str(class_id) for class_id in self.classes]
        if self.classes != self._named:
            raise ConfigError(
                "the head knows other classes than when class_names were given: make a new Network"
            )
        return list(self._names)

    def parts(self) -> list[Backbone]:
        """Each :class:`Backbone` in the backbone: two, where branches lie side by side."""
        return [part for part in self.backbone.modules() if isinstance(part, Backbone)]

    def preprocessing(self) -> dict[str, Any]:
        """What the network does to samples before it computes features, by name."""
        own = {name: values.tolist() for name, values in self.named_buffers(recurse=False)}
        for part in self.parts():
            own |= part.preprocessing()
        return own

    def _or_nan(self, answers: Tensor, samples: Tensor) -> Tensor:
        """In a graph: ``answers`` ``(N, C)``, NaN where the (normalised) samples are refused."""
        if not exporting() or not samples.is_floating_point():
            return answers
        low, high = self._value_range(samples)
        known = ((samples >= low) & (samples <= high)).flatten(1).all(1, keepdim=True)
        return torch.where(known, answers, torch.nan)

    def _value_range(self, samples: Tensor) -> tuple[float, float]:
        limits = torch.finfo(samples.dtype)
        parts = self.parts() if samples.ndim == 4 else []
        ranges = [(limits.min, limits.max), *(part.value_range for part in parts)]
        low, high = zip(*ranges, strict=True)
        return max(low), min(high)

    def normalised(self, samples: Tensor) -> Tensor:
        """Samples less ``mean`` and over ``std``; as they are where there is neither."""
        shape = (1, -1, *[1] * (samples.ndim - 2))
        if self.mean is not None:
            samples = samples - self.mean.view(shape)
        return samples if self.std is None else samples / self.std.view(shape)


def _require_head(head: object, class_names: Sequence[str] | None) -> None:
    if not isinstance(head, nn.Module):
        raise TypeError(f"head={head!r}: expected a fitted head, or another torch module")
    known, name = _known(head), type(head).__name__
    if known == []:
        raise NotFittedError(f"{name} has no classes yet: call fit(memory)")
    if known is None and not class_names:
        raise ConfigError(f"{name} names no classes: give class_names, one for each column")


def _known(head: nn.Module) -> list[int] | None:
    """Class ids of the columns of a head; None where a module does not tell them."""
    classes = getattr(head, "classes", None)
    return classes.tolist() if isinstance(classes, Tensor) else None


def _names(names: Sequence[str], head: nn.Module) -> list[str]:
    known = _known(head)
    expected = len(names) if known is None else len(known)
    if isinstance(names, str) or len(names) != expected:
        raise ConfigError(
            f"class_names={names!r}: expected {expected} names, one for each class of the head"
        )
    return [str(name) for name in names]


def _statistic(name: str, values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    statistic = torch.tensor(values, dtype=torch.float32).flatten()
    if not statistic.numel() or not bool(statistic.isfinite().all()):
        raise ConfigError(f"{name}={values!r}: expected finite numbers, one for each channel")
    if name == "std" and not bool((statistic > 0).all()):
        raise ConfigError(f"{name}={values!r}: expected numbers > 0, which samples are divided by")
    return statistic
