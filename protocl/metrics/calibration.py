"""Confidence against accuracy, in bins that add up over batches, experiences and clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocl.metrics import class_incremental as metrics


@dataclass(frozen=True)
class ReliabilityBins:
    """Samples sorted by confidence into ``M`` bins ``(m/M, (m+1)/M]``, as sums.

    Confidence is the largest softmax probability of the logits. Source: Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 2 (reliability diagrams; M = 15).

    Attributes:
        counts: ``M`` numbers of samples.
        correct: ``M`` numbers of right answers.
        confidence: ``M`` sums of confidences.

    >>> bins = ReliabilityBins.from_confidence([0.9, 0.8], [True, False], n_bins=2)
    >>> bins.counts, bins.correct
    ((0, 2), (0, 1))
    >>> round((bins + bins).expected_error(), 6)
    0.35
    """

    counts: tuple[int, ...]
    correct: tuple[int, ...]
    confidence: tuple[float, ...]

    @classmethod
    def from_confidence(cls, confidence: Any, correct: Any, n_bins: int = 15) -> ReliabilityBins:
        """Bin ``(N,)`` confidences in [0, 1] with ``(N,)`` booleans "the answer was right".

        Raises:
            ValueError: shapes differ, or a confidence is NaN or outside [0, 1].
        """
        sure = torch.as_tensor(confidence, dtype=torch.float64).cpu()
        right = torch.as_tensor(correct).cpu().long()
        if sure.ndim != 1 or sure.shape != right.shape:
            raise ValueError(
                "ReliabilityBins: confidence and correct must be vectors of equal length, "
                f"got shapes {tuple(sure.shape)} and {tuple(right.shape)}"
            )
        outside = ~((sure >= 0) & (sure <= 1 + 1e-6))
        if outside.any():
            raise ValueError(
                f"ReliabilityBins: confidences lie in [0, 1], got {sure[outside][0].item()} "
                f"at {int(outside.sum())} of {len(sure)} samples; are the logits finite?"
            )
        index = (torch.ceil(sure * n_bins).long() - 1).clamp(0, n_bins - 1)
        return cls(
            tuple(torch.bincount(index, minlength=n_bins).tolist()),
            tuple(_sums(index, right, n_bins)),
            tuple(_sums(index, sure, n_bins)),
        )

    def __add__(self, other: ReliabilityBins) -> ReliabilityBins:
        if len(self.counts) != len(other.counts):
            raise ValueError(
                f"ReliabilityBins: cannot add {len(other.counts)} bins to {len(self.counts)}"
            )
        return ReliabilityBins(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.correct, other.correct, strict=True)),
            tuple(a + b for a, b in zip(self.confidence, other.confidence, strict=True)),
        )

    def expected_error(self) -> float:
        """The expected calibration error, :func:`protocl.metrics.expected_calibration_error`."""
        return metrics.expected_calibration_error(self.counts, self.correct, self.confidence)

    def to_dict(self) -> dict[str, list[Any]]:
        """The three vectors as lists, for JSON; :meth:`from_dict` reads them back."""
        return {
            "counts": list(self.counts),
            "correct": list(self.correct),
            "confidence": list(self.confidence),
        }

    @classmethod
    def from_dict(cls, state: dict[str, list[Any]]) -> ReliabilityBins:
        """Read what :meth:`to_dict` wrote."""
        return cls(tuple(state["counts"]), tuple(state["correct"]), tuple(state["confidence"]))


def equal_mass_error(confidence: Any, correct: Any, n_bins: int = 15) -> float:
    """The expected calibration error over bins that hold equally many samples each.

    Bins of equal width leave most of their samples in one bin where a model is mostly sure, or
    mostly unsure. The price is that these bins do not add up over batches. Source: Nixon et al.,
    "Measuring calibration in deep learning", CVPR workshops 2019, section 4 (adaptive).

    Args:
        confidence: ``(N,)`` probabilities of the answers, in [0, 1].
        correct: ``(N,)`` booleans, whether the answers were right.
        n_bins: number of bins, at most ``N`` of which hold a sample.

    Raises:
        ValueError: shapes differ, a confidence is NaN or outside [0, 1], or there is no sample.

    >>> equal_mass_error([0.8, 0.8, 0.9, 0.9], [True, True, True, False], n_bins=2)
    0.3
    """
    ReliabilityBins.from_confidence(confidence, correct)  # refuses what is no confidence
    sure = torch.as_tensor(confidence, dtype=torch.float64).cpu()
    order = sure.argsort(stable=True)
    right = torch.as_tensor(correct).cpu().long()[order].tensor_split(n_bins)
    parts = sure[order].tensor_split(n_bins)
    return metrics.expected_calibration_error(
        [len(part) for part in parts],
        [int(part.sum()) for part in right],
        [float(part.sum()) for part in parts],
    )


def _sums(index: Tensor, values: Tensor, n_bins: int) -> list[Any]:
    zeros = torch.zeros(n_bins, dtype=values.dtype)
    result: list[Any] = zeros.index_add_(0, index, values).tolist()
    return result
