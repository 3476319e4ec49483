"""A scikit-learn classifier that learns class after class, merges and forgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_is_fitted,
    check_non_negative,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from protocl.errors import ConfigError
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.model.labels import Labels, ids_of, kind_of, like
from protocl.registry import HEADS

Scores = NDArray[np.float64]


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """Classify feature vectors by a head over a prototype memory.

    What it knows is a sum over samples: ``partial_fit`` in any order and any portions gives what
    ``fit`` gives on all of them, ``merge`` what all samples in one place give, and ``forget`` what
    would be there without them.

    Args:
        head: name of a registered head (``protocl list heads``), or a head.
        head_options: arguments of a head that is given by name, such as ``{"shrinkage": 0.1}``;
            ``head__shrinkage=0.1`` in ``set_params`` and grids means the same, from the next
            ``fit`` on. Heads by name compute in float64.
        forgettable: keep a second moment of each class, ``16 C D^2`` bytes, so that every class can
            be forgotten by name; else heads share one, and forget samples only.
        exact: sum in fixed point, so that any order and grouping gives the same bits.
        step: quantisation step of ``exact``.

    Attributes:
        classes_: ``(C,)`` labels of the classes with samples, sorted.
        n_features_in_: width ``D`` of the features.
        memory_: the :class:`protocl.PrototypeMemory`.
        head_: the head.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> known = PrototypeClassifier("lda", head_options={"shrinkage": 0.1})
        >>> round(known.fit(X[:900], y[:900]).score(X[900:], y[900:]), 2)
        0.93
    """

    classes_: Labels
    memory_: PrototypeMemory
    head_: Head

    def __init__(
        self,
        head: str | Head = "nearest_mean",
        *,
        head_options: dict[str, Any] | None = None,
        forgettable: bool = False,
        exact: bool = False,
        step: float = 2.0**-16,
    ) -> None:
        self.head = head
        self.head_options = head_options
        self.forgettable = forgettable
        self.exact = exact
        self.step = step

    # -- learning ---------------------------------------------------------------------------

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn from samples ``X`` ``(N, D)`` and labels ``y`` ``(N,)``; forget all before.

        Args:
            X: arrays, data frames or tensors of finite numbers.
            y: texts, whole numbers or truth values, all of one type.

        Raises:
            ValueError, TypeError: the samples or labels are none.
            ConfigError: ``head`` is not registered, or its options do not fit.
        """
        with self._whole_or_not_at_all():
            features, labels = self._checked(X, y, reset=True)
            self._begin(labels)
            return self._learn(features, labels)

    def partial_fit(self, X: Any, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Learn from further samples, of classes known or new.

        Args:
            X, y: as for :meth:`fit`.
            classes: all labels that may come, as scikit-learn's other classifiers need them; here
                only held against ``y``. A class is in ``classes_`` once it has a sample.

        Raises:
            ValueError, TypeError: as :meth:`fit`, or ``y`` has a label that ``classes`` lack.
        """
        first = not hasattr(self, "memory_")
        with self._whole_or_not_at_all():
            features, labels = self._checked(X, y, reset=first)
            if classes is not None:
                strange = np.setdiff1d(labels, np.asarray(classes))
                if len(strange):
                    raise ValueError(f"y has labels {strange.tolist()} that classes does not list")
            if first:
                self._begin(labels)
            return self._learn(features, labels)

    def merge(self, other: PrototypeClassifier) -> Self:
        """Know what ``other`` knows as well, as if its samples had been learned here.

        Raises:
            ValueError, TypeError: the two differ in features, kind of labels, head or arithmetic.
        """
        check_is_fitted(self, "memory_")
        check_is_fitted(other, "memory_")
        labels = like(other.classes_, self.classes_)
        mine, theirs = (repr((type(c.head_), c.head_.get_params())) for c in (self, other))
        if mine != theirs:
            raise ValueError(f"heads differ, {mine} and {theirs}: merge classifiers of one head")
        self.memory_.merge(other.memory_)
        self._note(labels)
        return self

    def __add__(self, other: PrototypeClassifier) -> PrototypeClassifier:
        twin = type(self)(**self.get_params(deep=False))
        twin.__dict__.update(self.__dict__)
        twin.memory_ = self.memory_.copy()
        twin.head_ = self.head_.twin()
        return twin.merge(other)

    def forget(
        self,
        X: Any = None,
        y: ArrayLike | None = None,
        *,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Be as if some samples, or some classes, had never been learned.

        Args:
            X, y: the samples and their labels; they must have been learned.
            classes: labels of whole classes; takes ``forgettable=True``.

        Raises:
            ValueError: neither or both are given, samples were never learned as far as sums tell,
                or too little is kept to forget a class by name.
            KeyError: a class is not known.
        """
        check_is_fitted(self, "memory_")
        if (classes is None) == (X is None):
            raise ValueError("forget takes either X and y, or classes")
        if classes is None:
            features, labels = self._checked(X, cast(ArrayLike, y), reset=False)
            gone = self.memory_.empty_like()
            gone.update(torch.from_numpy(features), self._ids(labels))
            self.memory_.subtract(gone)
        else:
            wanted = like(np.atleast_1d(np.asarray(classes)), self.classes_)
            missing = np.setdiff1d(wanted, self.classes_)
            if len(missing):
                raise KeyError(f"classes {missing.tolist()} are not known")
            if self.memory_.level == "shared":
                raise ValueError(
                    "one second moment is kept for all classes, so none can be forgotten by name: "
                    "give the samples, forget(X, y), or learn with forgettable=True"
                )
            self.memory_.forget(ids_of(wanted).tolist())
        known = np.isin(ids_of(self.classes_), self.memory_.classes.numpy())
        self.classes_ = self.classes_[known]
        return self

    # -- answering --------------------------------------------------------------------------

    def predict(self, X: Any) -> Labels:
        """Labels ``(N,)`` of samples ``(N, D)``; the first of ``classes_`` among equal scores."""
        best = self._logits(X).argmax(1)
        return cast(Labels, self.classes_[best])

    def decision_function(self, X: Any) -> Scores:
        """Scores ``(N, C)``, columns as ``classes_``; of two classes ``(N,)``, > 0: the second."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> Scores:
        """Calibrated probabilities ``(N, C)``, columns as ``classes_``, rows that sum to one."""
        features = self._features(X)
        head = self.head_.calibrate(self.memory_)
        return cast(Scores, head.predict_proba(features).numpy()[:, self._columns()])

    def _logits(self, X: Any) -> Scores:
        features = self._features(X)
        logits = self.head_.fit(self.memory_)(features).double().numpy()
        return cast(Scores, logits[:, self._columns()])

    def _columns(self) -> NDArray[np.intp]:
        """The column of the head's logits that belongs to each of ``classes_``."""
        return np.searchsorted(self.memory_.classes.numpy(), ids_of(self.classes_))

    # -- checks -----------------------------------------------------------------------------

    def _begin(self, labels: Labels) -> None:
        head = built(self.head, self.head_options or {})
        self.memory_ = head.new_memory(
            self.n_features_in_, level="full" if self.forgettable else None, exact=self.exact,
            step=self.step, calibrated=True,
        )  # fmt: skip
        self.head_ = head
        self.classes_ = labels[:0]

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Be as before where the block fails."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _learn(self, features: NDArray[Any], labels: Labels) -> Self:
        labels = like(labels, self.classes_)
        self.memory_.update(torch.from_numpy(features), self._ids(labels))
        self._note(labels)
        return self

    def _note(self, labels: Labels) -> None:
        self.classes_ = (
            np.union1d(self.classes_, labels) if len(self.classes_) else np.unique(labels)
        )

    @staticmethod
    def _ids(labels: Labels) -> Tensor:
        unique, rows = np.unique(labels, return_inverse=True)
        return torch.from_numpy(ids_of(unique)[rows])

    def _checked(self, X: Any, y: ArrayLike, *, reset: bool) -> tuple[NDArray[Any], Labels]:
        y = on_host(y)
        if getattr(getattr(y, "dtype", None), "kind", "") == "O":
            kind_of(np.asarray(y))  # refuses several types in better words than a sort does
        X, y = validate_data(self, on_host(X), y, reset=reset, dtype=_DTYPES)
        if self.__sklearn_tags__().input_tags.positive_only:
            check_non_negative(X, type(self).__name__)
        check_classification_targets(y)
        return np.require(X, requirements=["C", "W"]), column_or_1d(y)

    def _features(self, X: Any) -> Tensor:
        check_is_fitted(self, "memory_")
        if not len(self.classes_):
            raise ValueError("no class is known any more: learn samples with partial_fit first")
        checked = validate_data(self, on_host(X), reset=False, dtype=_DTYPES)
        return torch.from_numpy(np.require(checked, requirements=["C", "W"]))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        known = isinstance(self.head, Head) or (self.head in HEADS.names())
        head = built(self.head, self.head_options or {}) if known else None
        tags.input_tags.positive_only = getattr(head, "tukey", None) is not None
        return tags

    # -- settings ---------------------------------------------------------------------------

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


_DTYPES = (np.float64, np.float32)


def on_host(values: Any) -> Any:
    """What scikit-learn can read: tensors as arrays, everything else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


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
