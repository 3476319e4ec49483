"""A head by name or object, and its settings as scikit-learn's tools read and set them."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from sklearn.base import BaseEstimator

from protocl.errors import ConfigError
from protocl.heads.base import Head
from protocl.registry import HEADS


class HeadParameters(BaseEstimator):
    """An estimator whose ``head`` has settings of its own.

    Attributes:
        head: name of a registered head, or a head.
        head_options: arguments of a head that is given by name.
    """

    head: str | Head
    head_options: dict[str, Any] | None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings; with ``deep`` those of the head too, as ``head__NAME``."""
        params: dict[str, Any] = super().get_params(deep)
        if deep and isinstance(self.head, str) and self.head in HEADS.names():
            options = {**built(self.head, {}).get_params(), **(self.head_options or {})}
            params |= {f"head__{name}": value for name, value in options.items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Change settings; ``head__NAME`` is an option of the head."""
        head = params.get("head", self.head)
        if isinstance(head, str):
            inner = [key for key in params if key.startswith("head__")]
            options = {key.removeprefix("head__"): params.pop(key) for key in inner}
            if options:
                given = params.get("head_options", self.head_options) or {}
                params["head_options"] = {**given, **options}
        return cast(Self, super().set_params(**params))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        head: Any = self.head
        if not isinstance(head, Head):
            head = built(head, self.head_options or {}) if head in HEADS.names() else None
        tags.input_tags.positive_only = getattr(head, "tukey", None) is not None
        return tags


def built(head: str | Head, options: dict[str, Any]) -> Head:
    """The head that a name and options mean; of a given head a twin.

    Raises:
        ConfigError: there is none of that name, or an option does not fit.
    """
    if isinstance(head, Head):
        if options:
            raise ConfigError(f"head_options={options}: give them to the head {head!r} itself")
        return head.twin()
    if not isinstance(head, str):
        raise ConfigError(f"head={head!r}: expected the name of a head, or a head")
    try:
        made: Head = HEADS.get(head)(**{"dtype": torch.float64, **options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"head={head!r}, head_options={options}: {error}") from error
    return made
