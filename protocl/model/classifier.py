"""A scikit-learn classifier that learns class after class, merges, forgets, and is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any, Literal, Self, cast

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

from protocl.backbones import Backbone, BackboneConfig, fingerprint
from protocl.errors import DataError
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.model.encoder import Encoder, is_pictures, listed, on_host
from protocl.model.head_parameters import HeadParameters, built
from protocl.model.labels import Labels, as_given, ids_beside, kind_of, like
from protocl.model.replies import Replies


class PrototypeClassifier(Replies, ClassifierMixin, HeadParameters, BaseEstimator):
    """Classify feature vectors, or images, by a head over a prototype memory.

    What it knows is a sum over samples: ``partial_fit`` in any order and any portions gives what
    ``fit`` gives on all of them, ``merge`` what all samples in one place give, and ``forget`` what
    would be there without them.

    Args:
        head: name of a registered head (``protocl list heads``), or a head.
        head_options: arguments of a head that is given by name, such as ``{"shrinkage": 0.1}``;
            ``head__shrinkage=0.1`` in ``set_params`` and grids means the same, from the next
            ``fit`` on. Heads by name compute in float64.
        backbone: makes features of images: a name (``"efficientnet_lite0"``), a
            :class:`protocl.backbones.BackboneConfig`, or a :class:`protocl.backbones.Backbone`
            around a network of your own. Samples are then paths of image files, PIL pictures, or
            arrays of images, uint8 or in [0, 1]. None: samples are features.
        forgettable: keep second moments of each class, so that every class can be forgotten by
            name; else heads share one, and forget samples only. ``"auto"``: where those of the
            classes of the first samples take at most 200 MB.
        exact: sum in fixed point, so that any order and grouping gives the same bits.
        step: quantisation step of ``exact``.
        unknown_score: name of a score (``protocl list scores``), such as ``"evidence"``, by which
            samples count as unknown once :meth:`calibrate_unknown` has been asked; None: a
            probability tells it.

    Attributes:
        classes_: ``(C,)`` labels of the classes with samples, sorted.
        ids_: ``(C,)`` the ids that these classes have in the memory.
        n_features_in_: width ``D`` of the features.
        encoder_: the :class:`.Encoder` of images, with ``backbone``.
        memory_: the :class:`protocl.PrototypeMemory`.
        head_: the head.
        calibration_: of ``unknown_score``, a :class:`.ScoreCalibration`; None where there is none.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> known = PrototypeClassifier("lda", head_options={"shrinkage": 0.1})
        >>> round(known.fit(X[:900], y[:900]).score(X[900:], y[900:]), 2)
        0.93
    """

    encoder_: Encoder

    def __init__(
        self,
        head: str | Head = "nearest_mean",
        *,
        head_options: dict[str, Any] | None = None,
        backbone: str | BackboneConfig | Backbone | None = None,
        forgettable: bool | Literal["auto"] = "auto",
        exact: bool = False,
        step: float = 2.0**-16,
        unknown_score: str | None = None,
    ) -> None:
        self.head = head
        self.head_options = head_options
        self.backbone = backbone
        self.forgettable = forgettable
        self.exact = exact
        self.step = step
        self.unknown_score = unknown_score

    # -- learning ---------------------------------------------------------------------------

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn from samples ``X`` ``(N, D)`` and labels ``y`` ``(N,)``; forget all before.

        Args:
            X: arrays, data frames or tensors of finite numbers; with ``backbone`` images.
            y: texts, whole numbers or truth values, all of one type.

        Raises:
            ValueError, TypeError: the samples or labels are none.
            ConfigError: ``head`` is not registered, or its options do not fit.
        """
        with self._whole_or_not_at_all():
            self.__dict__.pop("encoder_", None)
            features, labels = self._checked(X, y, reset=True)
            self._begin(len(np.unique(labels)))
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
                self._begin(len(np.unique(labels if classes is None else np.asarray(classes))))
            return self._learn(features, labels)

    def merge(self, other: PrototypeClassifier) -> Self:
        """Know what ``other`` knows as well, as if its samples had been learned here.

        Raises:
            ValueError, TypeError: the two differ in features, kind of labels, head or arithmetic.
        """
        if not isinstance(other, PrototypeClassifier):
            raise TypeError(f"merge takes a PrototypeClassifier, got a {type(other).__name__}")
        check_is_fitted(self, "memory_")
        check_is_fitted(other, "memory_")
        labels = like(other.classes_, self.classes_)
        mine, theirs = (repr((type(c.head_), c.head_.get_params())) for c in (self, other))
        if mine != theirs:
            raise ValueError(
                f"heads differ, {self.head_!r} and {other.head_!r}: merge classifiers of one head"
            )
        ids = torch.from_numpy(self._ids_of(labels[np.argsort(other.ids_)]))
        self.memory_.merge(other.memory_.relabelled(ids))
        self._note(labels)
        return self

    def __add__(self, other: PrototypeClassifier) -> PrototypeClassifier:
        if not isinstance(other, PrototypeClassifier):
            return NotImplemented
        return copy(self).merge(other)

    def __copy__(self) -> Self:
        """A twin that learns and forgets on its own; the two share the backbone."""
        twin = type(self)(**self.get_params(deep=False))
        twin.__dict__.update(self.__dict__)
        if hasattr(self, "memory_"):
            twin.memory_ = self.memory_.copy()
            twin.head_ = deepcopy(self.head_)  # not its twin(), which keeps what was chosen
        return twin

    def __radd__(self, other: int) -> PrototypeClassifier:
        """``sum`` starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

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
            classes: labels of whole classes; takes second moments of each (``forgettable``).

        Raises:
            ValueError: neither or both are given, samples were never learned as far as sums tell,
                or too little is kept to forget a class by name.
            KeyError: a class is not known.
        """
        check_is_fitted(self, "memory_")
        if (classes is None) == (X is None):
            raise ValueError("forget takes either X and y, or classes")
        if self.memory_.estimated and self.memory_.level != "mean":
            raise ValueError(
                f"the second moment is an estimate ({self.memory_.estimated}): nothing can "
                "be taken out of it; forget in the run that made it, by protocl federate forget"
            )
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
                    "give the samples (X, y; --samples), or learn anew with forgettable=True"
                )
            self.memory_.forget(self._ids_of(wanted).tolist())
        self.calibration_ = None  # made with what is forgotten
        known = np.isin(self.ids_, self.memory_.classes.numpy())
        self.classes_, self.ids_ = self.classes_[known], self.ids_[known]
        return self

    # -- checks -----------------------------------------------------------------------------

    def _begin(self, classes: int) -> None:
        """Forget all, and make room for what is known of so many classes."""
        head = built(self.head, self.head_options or {})
        encoder = getattr(self, "encoder_", None)
        make = partial(
            head.new_memory, self.n_features_in_, exact=self.exact, step=self.step, calibrated=True,
            fingerprint=None if encoder is None else fingerprint(encoder.backbone),
        )  # fmt: skip
        memory, apart = make(), self.forgettable
        if apart == "auto":
            apart = memory.bytes_for(classes, "full") <= FORGETTABLE_BYTES
        self.memory_ = make(level="full") if apart else memory
        self.head_, self.calibration_ = head, None
        self.classes_, self.ids_ = np.empty(0), np.empty(0, dtype=np.int64)

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
        both = np.union1d(self.classes_, labels) if len(self.classes_) else np.unique(labels)
        self.classes_, self.ids_ = both, self._ids_of(both)

    def _ids(self, labels: Labels) -> Tensor:
        unique, rows = np.unique(labels, return_inverse=True)
        return torch.from_numpy(self._ids_of(unique)[rows])

    def _ids_of(self, labels: Labels) -> NDArray[np.int64]:
        """Class ids of distinct labels: those that they have here, or would have anywhere."""
        return ids_beside(labels, self.classes_, self.ids_)

    def _encoded(self, X: Any) -> Any:
        """Features of images; what is given where there is no backbone."""
        X = listed(X)
        if self.backbone is None:
            if is_pictures(X):
                raise ValueError(
                    "this classifier takes features, not pictures: make it with backbone=..., or "
                    "give it an array (N, D)"
                )
            return on_host(X)
        if not hasattr(self, "encoder_"):
            # One at a time: in batches the last bits of features depend on their number.
            self.encoder_ = Encoder.of(self.backbone, X, batch_size=1 if self.exact else None)
        return self.encoder_(X).numpy()

    def _checked(self, X: Any, y: ArrayLike, *, reset: bool) -> tuple[NDArray[Any], Labels]:
        y = as_given(on_host(y))
        if getattr(getattr(y, "dtype", None), "kind", "") == "O":
            kind_of(np.asarray(y))  # refuses several types in better words than a sort does
        X, y = validate_data(self, self._encoded(X), y, reset=reset, dtype=_DTYPES)
        if self.__sklearn_tags__().input_tags.positive_only:
            check_non_negative(X, type(self).__name__)
        check_classification_targets(y)
        return np.require(X, requirements=["C", "W"]), column_or_1d(y)

    def _features(self, X: Any) -> Tensor:
        check_is_fitted(self, "memory_")
        if not len(self.classes_):
            raise ValueError("no class is known any more: learn samples with partial_fit first")
        checked = validate_data(self, self._encoded(X), reset=False, dtype=_DTYPES)
        return torch.from_numpy(np.require(checked, requirements=["C", "W"]))

    # -- in and out -------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model: see :func:`protocl.save_model`."""
        from protocl.model.folder import save_model

        save_model(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backbone: Backbone | None = None) -> Self:
        """Read a model that learns: see :func:`protocl.load_model`.

        Raises:
            DataError: as there; or the model was trained otherwise, and learns no more.
        """
        from protocl.model.folder import load_model

        found = load_model(path, backbone=backbone)
        if not isinstance(found, cls):
            raise DataError(
                f"{path} holds no statistics, so that it cannot learn: read it by load_model"
            )
        return found

    def hold(self, memory: PrototypeMemory, labels: Labels, encoder: Encoder | None) -> Self:
        """Take over what is known from elsewhere, as if it had been learned here.

        Args:
            memory: made for the head, which has to be an object.
            labels: of its classes, in the order of their ids.
            encoder: of samples, with ``backbone``.
        """
        order = np.argsort(labels, kind="stable")
        self.memory_, self.head_ = memory, built(self.head, {})
        self.calibration_ = None
        self.classes_, self.ids_ = labels[order], memory.classes.numpy()[order]
        self.n_features_in_ = memory.feature_dim
        if encoder is not None:
            self.encoder_ = encoder
        return self


_DTYPES = (np.float64, np.float32)
FORGETTABLE_BYTES = 200_000_000
"""Second moments of each class that are kept without being asked for."""
