"""The settings of a head, as scikit-learn's tools read and set them."""

from __future__ import annotations

import inspect
from typing import Any, Self


class Settings:
    """Remembers the arguments that an object was made with.

    What ``sklearn.base.clone`` and ``GridSearchCV`` ask of a part, without scikit-learn.
    """

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls).bind_partial(*args, **kwargs)
        except TypeError:  # the constructor says it better
            return made
        bound.apply_defaults()
        # A torch module has no attributes of its own before its __init__ has run.
        made.__dict__["_given"] = dict(bound.arguments)
        return made

    def extra_repr(self) -> str:
        """What the ``repr`` of the module shows in its parentheses: every setting as it was given.

        Example:
            >>> from protocl.heads import NearestMean
            >>> NearestMean("cosine")  # doctest: +ELLIPSIS
            NearestMean(metric='cosine', ...)
        """
        return ", ".join(f"{name}={value!r}" for name, value in self._given.items())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name, as they were given.

        Args:
            deep: without effect; a head has no parts with settings of their own.
        """
        return dict(self._given)

    def set_params(self, **settings: Any) -> Self:
        """Change settings; what was fitted is dropped.

        Raises:
            ValueError: there is no setting of that name, or its value does not fit.
        """
        unknown = settings.keys() - self._given.keys()
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no setting {unknown.pop()!r}: "
                f"choose from {', '.join(self._given)}"
            )
        given = {**self._given, **settings}
        type(self)(**given)  # refused before anything of this one is lost
        type(self).__init__(self, **given)
        self.__dict__["_given"] = given
        return self
