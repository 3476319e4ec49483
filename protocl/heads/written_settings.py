"""Settings of heads as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protocl.heads.bayesian import priors
from protocl.memory.feature_maps import FeatureMap, feature_map

_DTYPE = "torch.dtype"
_TENSOR = "torch.Tensor"
_PRIOR = "protocl.Prior"
_MAP = "protocl.FeatureMap"


def plain(name: str, value: Any) -> Any:
    """A setting as JSON has it.

    Raises:
        ValueError: it is neither a number, a text, a truth value, a list, a dtype, a
            tensor, a prior nor a feature map.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, Tensor):
        return {_TENSOR: value.tolist(), _DTYPE: str(value.dtype).removeprefix("torch.")}
    if isinstance(value, priors.Prior) and hasattr(priors, type(value).__name__):
        fields = {key: plain(key, each) for key, each in vars(value).items()}
        return {_PRIOR: type(value).__name__, **fields}
    if isinstance(value, FeatureMap):
        return {_MAP: value.spec}
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    raise ValueError(
        f"{name}={value!r} cannot be written to a model: expected a number, a text, a list of "
        "them, a dtype, a tensor, a feature map or one of our priors"
    )


def restored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that :func:`plain` gave.

    Raises:
        ValueError, TypeError: it gave none such.
    """
    return {name: _restored(value) for name, value in settings.items()}


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if not isinstance(value, dict):
        return value
    if _PRIOR in value:
        fields = {name: _restored(each) for name, each in value.items() if name != _PRIOR}
        return _prior(value[_PRIOR])(**fields)
    if _MAP in value:
        return feature_map(str(value[_MAP]))
    dtype = _dtype(value.get(_DTYPE))
    return torch.tensor(value[_TENSOR], dtype=dtype) if _TENSOR in value else dtype


# A file may name anything: what is found in a module is only taken if it is what it should be.


def _prior(name: Any) -> type[priors.Prior]:
    found = vars(priors).get(name) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, priors.Prior):
        raise ValueError(f"{name!r} is none of our priors")
    return found


def _dtype(name: Any) -> torch.dtype:
    found = vars(torch).get(name) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found
