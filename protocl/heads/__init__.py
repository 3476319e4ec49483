"""Heads: pure functions of a prototype memory that turn features into logits."""

from protocl.heads.base import Head
from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.heads.bayesian.priors import ClassPriors, Prior, RandomPrior, SharedPrior
from protocl.heads.calibrated import GaussianCalibrated
from protocl.heads.joint.anacp import AnaCP
from protocl.heads.joint.ensemble import Ensemble, KLDAEnsemble
from protocl.heads.linear_discriminant import LinearDiscriminant
from protocl.heads.mahalanobis import Mahalanobis
from protocl.heads.nearest_mean import NearestMean
from protocl.heads.probabilities.table import CalibrationTable
from protocl.heads.ridge import Ridge

__all__ = [
    "AnaCP",
    "BayesianPrototypes",
    "CalibrationTable",
    "ClassPriors",
    "Ensemble",
    "GaussianCalibrated",
    "Head",
    "KLDAEnsemble",
    "LinearDiscriminant",
    "Mahalanobis",
    "NearestMean",
    "Prior",
    "RandomPrior",
    "Ridge",
    "SharedPrior",
]
