"""The public laws: they hold for everything registered, and they catch what violates them."""

from __future__ import annotations

import itertools

import pytest
import torch

from protocl import PrototypeMemory, checks
from protocl.config.compose import load
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.feature_maps import ReluProjection, Tukey, UnitNorm
from protocl.registry import HEADS, STRATEGIES

LEVELS = ("mean", "diagonal", "shared", "full")
MAPS = {
    "identity": lambda: None,
    "unit": UnitNorm,
    "tukey": Tukey,
    "projection": lambda: ReluProjection(6, 9, seed=3),
}


@pytest.mark.parametrize("check", checks.MEMORY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("level", "exact"), list(itertools.product(LEVELS, (False, True))))
def test_memory_laws(check, level, exact):
    check(lambda: PrototypeMemory(6, level, exact=exact))


@pytest.mark.parametrize("check", checks.MEMORY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "exact"), list(itertools.product(MAPS, (False, True))))
def test_memory_laws_under_a_feature_map(check, name, exact):
    check(
        lambda: PrototypeMemory(6, "shared", feature_map=MAPS[name](), raw_means=True, exact=exact)
    )


@pytest.mark.parametrize("check", checks.HEAD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", HEADS.names())
def test_registered_heads_keep_the_laws(check, name):
    check(HEADS.get(name))


VARIANTS = {
    "cosine": lambda: NearestMean("cosine"),
    "nme": lambda: NearestMean(normalize_input=True, normalize_mean=True),
    "lda_auto": lambda: LinearDiscriminant("auto", priors="empirical", ddof="n-c"),
    "fecam_vit": Mahalanobis.fecam_vit,
    "avalanche_fecam": Mahalanobis.avalanche,
    "covariance": lambda: Mahalanobis(tukey=None, normalize=False, correlation=False),
    "fecam_low_rank": lambda: Mahalanobis(covariance="low_rank", rank=4),
    "fecam_shared": lambda: Mahalanobis(covariance="shared"),
    "ranpac": lambda: Ridge(projection=64),
}


@pytest.mark.parametrize("check", checks.HEAD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_keep_the_laws(check, name):
    check(VARIANTS[name])


# -- a check that cannot fail is worth nothing ----------------------------------------------


class MovingAverage(PrototypeMemory):
    """Avalanche's way: a class seen again is averaged half and half."""

    def update(self, features, labels):
        twin = PrototypeMemory(self.feature_dim).update(features, labels)
        again = torch.isin(twin.classes, self.classes)
        twin.sum[again] /= 2
        return self.merge(twin)


class DrawsRandomNumbers(PrototypeMemory):
    def update(self, features, labels):
        torch.rand(1)
        return super().update(features, labels)


class AliasesItsInput(PrototypeMemory):
    def update(self, features, labels):
        super().update(features, labels)
        features.add_(1)
        return self


@pytest.mark.parametrize(
    ("memory", "check"),
    [
        (MovingAverage, checks.check_split),
        (DrawsRandomNumbers, checks.check_random_state),
        (AliasesItsInput, checks.check_input_untouched),
    ],
)
def test_memory_laws_catch_violations(memory, check):
    with pytest.raises(AssertionError):
        check(lambda: memory(6))


class ZeroPrototype(NearestMean):
    """A head that invents a class without samples."""

    def _logits(self, features):
        zero = -features.square().sum(1, keepdim=True)
        return torch.cat([super()._logits(features), zero], dim=1)


class Remembers(NearestMean):
    def _fit(self, memory):
        if self._revision is None:
            super()._fit(memory)


class AlwaysRefits(NearestMean):
    def fit(self, memory):
        self._revision = None
        return super().fit(memory)


@pytest.mark.parametrize(
    ("head", "check"),
    [
        (ZeroPrototype, checks.check_classes),
        (Remembers, checks.check_function_of_memory),
        (AlwaysRefits, checks.check_refits_only_on_change),
    ],
)
def test_head_laws_catch_violations(head, check):
    with pytest.raises(AssertionError):
        check(head)


SMALL = {
    "aper": ["session.adapt=finetune", "first_experience_epochs=2"],
    "ranpac": ["head.projection=50"],
    "il2a": ["plugin.ratio=0.1", "plugin.augmentation_weight=0.5"],
    "protocl": ["plugin.mem_size=30", "lr=1e-3"],
    "replay": ["mem_size=30"],
    "icarl": ["mem_size=30"],
    "icarl_nme": ["mem_size=30"],
}
EXEMPT = {
    ("avalanche_ncm", "check_unseen_never_win"): "its prototypes of unseen classes are zeros",
    ("avalanche_slda", "check_unseen_never_win"): "its scores of unseen classes are zero",
    ("avalanche_fecam", "check_unseen_never_win"): "its prototypes of unseen classes are zeros",
    ("avalanche_fecam", "check_evaluation_changes_nothing"): "its unseen classes' logits change",
    ("icarl", "check_a_class_comes_back"): "Avalanche's iCaRL wants each class in one experience",
}


@pytest.mark.parametrize("check", checks.STRATEGY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_registered_strategies_keep_the_laws(check, name):
    if (name, check.__name__) in EXEMPT:
        pytest.skip(EXEMPT[name, check.__name__])
    small = [f"strategy.{setting}" for setting in SMALL.get(name, [])]

    def settings():
        (config,) = load([f"strategy={name}", *small])
        config.strategy.train_epochs = 2
        return config.strategy

    check(settings)
