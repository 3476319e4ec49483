"""The evidence that two groups of samples are of one category, in closed form in their sums."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.memory import PrototypeMemory
from protocl.open_world.categories import Rows
from protocl.open_world.fitted import Fitted
from protocl.open_world.two_covariances import ClassSums, directions


def log_evidence(counts: Tensor, coordinates: Tensor, between: Tensor) -> Tensor:
    """Log evidence ``(R,)`` that the samples behind each row are of one category.

    ``L(n, t) = sum_d [ -log(1 + n b_d) / 2 + b_d t_d^2 / (2 (1 + n b_d)) ]``, up to terms that
    cancel between one category and two.

    Args:
        counts: ``(R,)`` samples of each row.
        coordinates: ``(R, d)`` their sums, with variance 1 within categories.
        between: ``(d,)`` variances of the categories' means.

    >>> log_evidence(torch.tensor([1.0]), torch.tensor([[2.0]]), torch.tensor([1.0]))
    tensor([0.6534])
    """
    weights, logs = _of_counts(counts, between)
    return 0.5 * ((weights * coordinates.square()).sum(1) - logs)


def log_ratios(left: Rows, right: Rows, between: Tensor) -> Tensor:
    """``L(i + j) - L(i) - L(j)`` ``(R, Q)``: above 0, two rows are rather one category.

    Args:
        left: ``R`` rows.
        right: ``Q`` rows.
        between: ``(d,)`` variances of the categories' means.
    """
    ratios = left.coordinates.new_empty(len(left), len(right))
    for count in left.counts.unique():
        rows = left.counts == count
        weights, logs = _of_counts(count + right.counts, between)
        here, weighted = left.coordinates[rows], weights * right.coordinates
        both = here.square() @ weights.T + 2 * here @ weighted.T
        ratios[rows] = (both + (weighted * right.coordinates).sum(1) - logs) / 2
    ratios -= log_evidence(left.counts, left.coordinates, between)[:, None]
    return ratios - log_evidence(right.counts, right.coordinates, between)


def _of_counts(counts: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """``b / (1 + n b)`` ``(R, d)`` and ``sum log(1 + n b)`` ``(R,)``, once for equal counts."""
    kinds, kind = counts.unique(return_inverse=True)
    spread = 1 + kinds[:, None] * between
    return (between / spread)[kind], spread.log().sum(1)[kind]


def alike(memory: PrototypeMemory) -> tuple[str | None, int, str]:
    """What must agree before sums of two memories are compared: backbone, width and map."""
    return memory.fingerprint, memory.width, memory.feature_map.spec


class TwoCovariance(Fitted):
    """Whether samples and rows of sums belong to one category, as a log odds ratio.

    A category has a mean ``y ~ N(m, S_b)`` and samples ``x ~ N(y, S_w)``. Both covariances follow
    from a memory of level ``shared``; the ratio from the counts and sums of two rows, so that it
    merges and forgets as they do. Applied to a query and the known classes it tells unknown
    inputs; to rows of one client it groups them; to rows of two clients it recognises the same
    category. The model is that of probabilistic linear discriminant analysis.

    Real features are not Gaussian, and the ratio is too sure: for joining compare it with an offset
    below 0 (:func:`.agglomeration.agglomerate`), for detection with a threshold
    (:mod:`.thresholds`).

    Args:
        shrinkage: weight of the scaled identity in ``S_w``, from 0 to 1.
        base: memory of level ``shared`` of classes that help to estimate ``m`` and the
            covariances, such as those that the backbone was trained on. They are not known
            classes: no query is compared with them, and ids may be the same. With it one known
            class, and a memory of level ``mean``, are enough.

    Source: Ioffe, "Probabilistic linear discriminant analysis", ECCV 2006; Prince and Elder,
    "Probabilistic linear discriminant analysis for inferences about identity", ICCV 2007.

    Example:
        >>> features = torch.tensor([[0.0, 1], [1, 0], [9, 0], [8, 1], [0, 8], [1, 9]])
        >>> memory = PrototypeMemory(2, level="shared").update(
        ...     features, torch.tensor([4, 4, 7, 7, 9, 9]))
        >>> evidence = TwoCovariance(shrinkage=0.0).fit(memory)
        >>> evidence.known(torch.tensor([[0.5, 0.5], [5.0, 4.0]])) > 0
        tensor([ True, False])
    """

    required_level = "shared"
    least_classes = 2
    _axes: Tensor
    _between: Tensor
    _mean: Tensor
    _ids: Tensor
    _counts: Tensor
    _coordinates: Tensor

    def __init__(self, shrinkage: float = 0.3, *, base: PrototypeMemory | None = None) -> None:
        super().__init__()
        if not (is_number(shrinkage) and 0 <= shrinkage <= 1):
            raise ValueError(f"shrinkage={shrinkage!r}: expected a number between 0 and 1")
        self.shrinkage = shrinkage
        self.base = base
        self._fingerprint: str | None = None

    def behind(self, memory: PrototypeMemory) -> str:
        """See :class:`.Fitted`; base classes may have changed, too."""
        return memory.revision if self.base is None else f"{memory.revision} {self.base.revision}"

    def lacks(self, memory: PrototypeMemory) -> str:
        """See :class:`.Fitted`."""
        if self.base is None:
            return super().lacks(memory)
        if alike(self.base) != alike(memory):
            raise ValueError(
                f"base classes have features {alike(self.base)}, the memory {alike(memory)}: "
                "both must be of one backbone, width and map"
            )
        return super().lacks(self.base) or ("" if len(memory) else "the memory is empty")

    def rows(self, memory: PrototypeMemory) -> Rows:
        """The classes of a memory, of any level, in the directions of this one.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
            ValueError: its backbone, width or map is not that of the memory behind.
        """
        assert self.revision
        if (memory.width, memory.feature_map.spec) != (len(self._axes), self._map.spec):
            raise ValueError(
                f"rows of width {memory.width} under the map '{memory.feature_map.spec}' cannot be "
                f"compared with width {len(self._axes)} under '{self._map.spec}'"
            )
        if None not in (self._fingerprint, memory.fingerprint) and (
            self._fingerprint != memory.fingerprint
        ):
            raise ValueError(
                f"rows of the backbone {memory.fingerprint} cannot be compared with classes of "
                f"{self._fingerprint}: features of one backbone say nothing about another's"
            )
        counts = memory.counts.double()
        sums = memory.sums - counts[:, None] * self._mean
        return Rows(memory.classes, counts, sums @ self._axes)

    @property
    def between(self) -> Tensor:
        """Variances ``(d,)`` of the categories' means in the directions of :meth:`rows`."""
        assert self.revision
        return self._between

    @property
    def known_rows(self) -> Rows:
        """Those of the memory that this is fitted to."""
        assert self.revision
        return Rows(self._ids, self._counts, self._coordinates)

    @torch.no_grad()
    def of_samples(self, features: Tensor) -> Rows:
        """One row a sample ``(N, D)``, numbered from 0."""
        return self._singles(self._mapped(features))

    def same(self, left: Rows, right: Rows) -> Tensor:
        """Log odds ratios ``(R, Q)`` that two rows are one category; above 0: rather one."""
        return log_ratios(left, right, self._between)

    def scores(self, features: Tensor) -> Tensor:
        """Log odds ratios ``(N, C)`` that a sample ``(N, D)`` is of a class, ids ascending."""
        return self.same(self.of_samples(features), self.known_rows)

    def known(self, features: Tensor) -> Tensor:
        """Largest ratio ``(N,)`` over the known classes; above 0: rather known than new."""
        return self.scores(features).amax(1)

    def known_of(self, mapped: Tensor) -> Tensor:
        """:meth:`known` ``(N,)`` of samples ``(N, W)`` that are under the map already."""
        return self.same(self._singles(mapped), self.known_rows).amax(1)

    @torch.no_grad()
    def left_out(self, features: Tensor, labels: Tensor) -> Tensor:
        """Ratio ``(N,)`` of each sample to its own class without that sample.

        Args:
            features: ``(N, D)`` samples that are in the memory.
            labels: ``(N,)`` their classes.

        Returns:
            Minus infinity for the only sample of a class.

        Raises:
            KeyError: the memory lacks a class.
        """
        samples = self.of_samples(features)
        own = self.known_rows.of(labels)
        rest = own.counts - 1
        without = log_evidence(rest, own.coordinates - samples.coordinates, self._between)
        ratio = log_evidence(own.counts, own.coordinates, self._between) - without
        ratio -= log_evidence(samples.counts, samples.coordinates, self._between)
        return ratio.masked_fill(rest < 1, -torch.inf)

    def _singles(self, mapped: Tensor) -> Rows:
        coordinates = (mapped - self._mean) @ self._axes
        ids = torch.arange(len(mapped), device=coordinates.device)
        return Rows(ids, coordinates.new_ones(len(mapped)), coordinates)

    def _fit(self, memory: PrototypeMemory) -> None:
        sums = ClassSums.of(memory if self.base is None else self.base)
        if self.base is not None and memory.provides("shared"):
            sums = sums.beside(ClassSums.of(memory))
        axes, between = directions(sums, self.shrinkage)
        self._fingerprint = memory.fingerprint
        counts = memory.counts.double()
        coordinates = (memory.sums - counts[:, None] * sums.mean) @ axes
        self._set(
            _axes=axes, _between=between, _mean=sums.mean, _ids=memory.classes, _counts=counts,
            _coordinates=coordinates,
        )  # fmt: skip
