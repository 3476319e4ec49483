"""What every head has in common."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor

from protocl.errors import NotFittedError
from protocl.heads.probabilities.calibrate import calibration_of, left_out_table, level_for
from protocl.heads.probabilities.calibration import Calibration, probabilities
from protocl.heads.probabilities.table import CalibrationTable
from protocl.heads.queries import MappedQueries
from protocl.heads.ranking import best_columns
from protocl.heads.settings import Settings
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level, require_tensor
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.kind import Moments
from protocl.memory.limits.digits import warn_of_coarse_step
from protocl.memory.limits.scatter import warn_of_offsets
from protocl.memory.precision import without_autocast
from protocl.memory.summation import all_finite
from protocl.tracing import exporting


class Head(Settings, MappedQueries):
    """A classifier that follows from a memory's statistics in closed form.

    A subclass states the statistics that it needs (``required_level``, :meth:`feature_map`) and
    implements :meth:`_fit` and :meth:`_logits`. What it derives is kept in buffers outside the
    ``state_dict``: the memory is the state, the head follows from it.

    Queries go through the map of the statistics before :meth:`_logits` sees them.

    Args:
        dtype: precision of the fitted parameters and of the logits. Fitting is done in float64.
        map: map under which samples are summed and queries answered: a :class:`.FeatureMap`, or
            the name of a registered one and its settings, ``"top_k:dim=2000:keep=0.1"``; None for
            the head's own.

    Attributes:
        chunk_bytes: bound on the logits that :meth:`predict` and :meth:`topk` hold at once; may be
            set at any time. At least one logit (for a head of a third party: one row) is held.
        ordered_by: the setting by which its statistics depend on the order of samples, and so do
            not add up over clients; "" where they do.
    """

    required_level: Level = "mean"
    raw_means: bool = False
    ordered_by: str = ""

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, map: FeatureMap | str | None = None
    ) -> None:
        super().__init__(dtype, map)
        self.register_buffer("_classes", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._revision: str | None = None
        self._feature_dim = 0
        self._calibration: tuple[str, Calibration] | None = None
        self._by_statistics: str | None = None  # revision whose calibration came without a table

    # -- for users --------------------------------------------------------------------------

    @property
    def classes(self) -> Tensor:
        """``(C,)`` int64 ids of the classes that the columns of the logits stand for."""
        return self._classes.clone()

    def new_memory(
        self,
        feature_dim: int,
        *,
        level: Level | None = None,
        exact: bool = False,
        step: float = 2.0**-16,
        moments: Moments = "pairs",
        fingerprint: str | None = None,
        calibrated: bool = False,
    ) -> PrototypeMemory:
        """An empty memory that keeps what this head needs.

        Args:
            feature_dim: width ``D`` of the backbone's features.
            level: keep more than the head needs (to compare heads on one memory).
            exact, step, moments, fingerprint: as for :class:`protocl.PrototypeMemory`.
            calibrated: also keep what :meth:`calibrate` needs where it is given no table.
        """
        needed = level_for(self.required_level) if calibrated else self.required_level
        return PrototypeMemory(
            feature_dim, level or needed, feature_map=self.feature_map(feature_dim),
            raw_means=self.raw_means, exact=exact, step=step, moments=moments,
            fingerprint=fingerprint,
        )  # fmt: skip

    @torch.no_grad()
    def fit(self, memory: PrototypeMemory) -> Self:
        """Derive the classifier from ``memory``; does nothing if the memory has not changed.

        Raises:
            TypeError: it is no memory.
            ValueError: the memory is empty or lacks statistics that this head needs.

        Warns:
            PrecisionWarning: features are so far from the origin, in standard deviations within
                classes, that sums of squares in float64 do not resolve their scatter; or spread
                over too few steps of fixed point.
        """
        if not isinstance(memory, PrototypeMemory):
            kind = type(memory).__name__
            raise TypeError(
                f"{type(self).__name__}.fit takes a PrototypeMemory, got a {kind}; "
                "write head.fit(head.new_memory(feature_dim).update(features, labels))"
            )
        if memory.revision != self._revision:
            self._require(memory)
            if memory.exact:
                warn_of_coarse_step(memory)
            if self.required_level != "mean":
                warn_of_offsets(memory)
            self._go_under(memory.feature_map)
            self._fit(memory)
            self._set(_classes=memory.classes)
            self._feature_dim = memory.feature_dim
            self._revision = memory.revision
        return self

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of ``features`` ``(N, D)``; column ``c`` stands for ``classes[c]``.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
            TypeError: the features are no tensor.
            ValueError: a feature is NaN or infinite, or the width does not fit.
        """
        self._require_fitted(features)
        # Under autocast a matrix product would run in half precision whatever its inputs.
        with without_autocast(features.device.type):
            logits = self._answers(features, self._mapped)
        _require_finite(logits)
        return logits

    def predict(self, features: Tensor) -> Tensor:
        """Class ids ``(N,)`` of ``features`` ``(N, D)``; the lowest id among equal logits.

        Raises:
            NotFittedError, ValueError: as :meth:`forward`.
        """
        return self.topk(features, 1)[1][:, 0]

    @torch.no_grad()
    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` largest logits of each sample and their class ids, without all ``(N, C)``.

        Args:
            features: ``(N, D)``.
            k: 1 to the number of classes.

        Returns:
            Logits ``(N, k)`` in descending order and class ids ``(N, k)`` int64. Among equal logits
            the lower class id comes first. A :class:`protocl.heads.blockwise.ChunkedHead` ranks the
            very numbers of :meth:`forward`; other heads compute some rows at a time, so that more
            samples than fit ``chunk_bytes`` may be rounded differently there.

        Raises:
            NotFittedError, ValueError: as :meth:`forward`, or ``k`` is out of range.
        """
        self._require_fitted(features)
        classes = self._classes
        if not 1 <= k <= len(classes):
            raise ValueError(f"k={k}: expected 1 to {len(classes)}, the number of classes")
        _require_finite(features)
        values = features.new_empty(len(features), k, dtype=self.dtype)
        columns = torch.empty_like(values, dtype=torch.int64)
        with without_autocast(features.device.type):
            best_columns(self._blocks(features, self._mapped), (values, columns))
        _require_finite(values)
        return values, classes[columns]

    @torch.no_grad()
    def calibrate(self, memory: PrototypeMemory, table: CalibrationTable | None = None) -> Self:
        """Fit to ``memory``, and learn from it how sure the answers are.

        Without a table this follows from the statistics: the head answers for seeded samples from
        Student's distributions with the class means and the pooled covariance. It holds on digits
        (expected calibration error below 5 %) and makes a head of many similar classes too sure (21
        to 38 % on features of CIFAR-100). A table of left-out samples knows better: 2 to 5 %.

        Args:
            memory: of level ``shared`` or ``full``; with a table of any level that suits the head.
            table: sum of what all holders of samples got from :meth:`calibration_table`.

        Raises:
            TypeError, ValueError: as :meth:`fit`; or the memory keeps too little, or the table
                belongs to another memory or another head.
        """
        self.fit(memory)
        assert self._revision is not None  # fit has set it
        if table is not None or self._by_statistics != self._revision:
            self._calibration = self._revision, calibration_of(self, memory, table)
            self._by_statistics = self._revision if table is None else None
        return self

    @torch.no_grad()
    def calibration_table(
        self, memory: PrototypeMemory, features: Tensor, labels: Tensor, *, parts: int = 10
    ) -> CalibrationTable:
        """How sure this head is, and how often right, on samples of ``memory`` that it leaves out.

        Tables of clients add up (``sum(tables)``) and belong to this memory and head: once either
        has changed, :meth:`calibrate` refuses them.

        Args:
            memory: the merged statistics, these samples among them.
            features: ``(N, D)``.
            labels: ``(N,)``.
            parts: into how many parts the samples are divided, each of which is left out in turn
                at the cost of a fit. With hardly more samples than features take 20.

        Raises:
            TypeError, ValueError: as :meth:`fit`; or the batch does not fit, or holds classes that
                the memory does not know.
        """
        return left_out_table(self.fit(memory), memory, features, labels, parts)

    def predict_proba(self, features: Tensor) -> Tensor:
        """Calibrated probabilities ``(N, C)`` float64; column ``c`` stands for ``classes[c]``.

        Each row sums to one and has the order of the logits: the largest is that of
        :meth:`predict`.

        Raises:
            NotFittedError: :meth:`calibrate` has not been called since the head was last fitted.
            ValueError: as :meth:`forward`.

        Example:
            >>> from protocl.heads import LinearDiscriminant
            >>> head = LinearDiscriminant()
            >>> features = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
            >>> memory = head.new_memory(1).update(features, torch.tensor([0, 0, 1, 1]))
            >>> [f"{p:.2f}" for p in head.calibrate(memory).predict_proba(torch.tensor([[2.5]]))[0]]
            ['0.17', '0.83']
        """
        self._require_fitted(features)
        if self._calibration is None or self._calibration[0] != self._revision:
            raise NotFittedError(
                f"{type(self).__name__} has no calibration for these statistics: call "
                "calibrate(memory), which also fits, before predict_proba"
            )
        return probabilities(self(features), self._calibration[1])

    def twin(self) -> Self:
        """An independent head of the same settings."""
        return deepcopy(self)

    @property
    def nbytes(self) -> int:
        """Bytes that the fitted parameters occupy."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def dense_logits(
        self, features: Tensor, width: int = 0, floor: float = float("-inf")
    ) -> Tensor:
        """Logits with one column for each class id, as losses and metrics expect them.

        Args:
            features: ``(N, D)``.
            width: least number of columns; there are always enough for the largest class id.
            floor: value in the columns of classes never seen, so that they cannot win.

        Returns:
            ``(N, max(width, largest class id + 1))``.
        """
        logits = self(features)
        columns = max(width, int(self._classes[-1]) + 1)
        dense = logits.new_full((len(logits), columns), floor)
        return dense.index_copy_(1, self._classes, logits)

    # -- for heads --------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, memory: PrototypeMemory) -> None:
        """Set the buffers that :meth:`_logits` reads."""

    def _set(self, **buffers: Tensor) -> None:
        """Keep derived tensors; floating point ones in the head's precision."""
        for name, value in buffers.items():
            value = value.to(self.dtype) if value.is_floating_point() else value
            self.register_buffer(name, value.contiguous(), persistent=False)

    def _require_fitted(self, features: Tensor) -> None:
        if self._revision is None:
            raise NotFittedError(
                f"{type(self).__name__} has no prototypes yet: call fit(memory) first"
            )
        require_tensor("features", features)
        if features.ndim != 2 or features.shape[1] != self._feature_dim:
            raise ValueError(
                f"features have shape {tuple(features.shape)}: expected (N, {self._feature_dim}), "
                "as in the memory that the head was fitted to"
            )

    def _require(self, memory: PrototypeMemory) -> None:
        name = type(self).__name__
        if len(memory) == 0:
            raise ValueError(f"{name}.fit: the memory is empty; update it with features first")
        if not memory.provides(self.required_level):
            raise ValueError(
                f"{name}.fit needs a memory of level '{self.required_level}', got "
                f"'{memory.level}'; make it with head.new_memory(feature_dim)"
            )
        wanted = self.feature_map(memory.feature_dim).spec
        if memory.feature_map.spec != wanted:
            raise ValueError(
                f"{name}.fit needs statistics summed under the map '{wanted}', got "
                f"'{memory.feature_map.spec}'; make the memory with head.new_memory(feature_dim)"
            )


def _require_finite(values: Tensor) -> None:
    if not exporting() and not all_finite(values):
        raise ValueError(
            "features hold NaN or infinite values, or are too large for this head: "
            "expected finite numbers"
        )
