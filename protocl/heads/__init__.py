"""Heads: pure functions of a prototype memory that turn features into logits."""

from protocl.heads.base import Head
from protocl.heads.linear_discriminant import LinearDiscriminant
from protocl.heads.mahalanobis import Mahalanobis
from protocl.heads.nearest_mean import NearestMean
from protocl.heads.ridge import Ridge

__all__ = ["Head", "LinearDiscriminant", "Mahalanobis", "NearestMean", "Ridge"]
