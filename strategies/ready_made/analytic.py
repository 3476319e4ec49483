"""Published ridge regressions over a frozen backbone, for Avalanche's users.

Their settings are in the module of each one's name: :mod:`protocl.strategies.analytic`.
"""

from __future__ import annotations

from protocl.strategies.analytic.acil import ACILConfig
from protocl.strategies.analytic.afl import AFLConfig
from protocl.strategies.analytic.air import AIRConfig
from protocl.strategies.analytic.fed3r import Fed3RConfig
from protocl.strategies.analytic.flycl import FlyCLConfig
from protocl.strategies.analytic.loranpac import LoRanPACConfig
from protocl.strategies.ready_made.recipes import Recipe


class ACIL(Recipe):
    """Ridge regression on random features with a linear layer's start: ACIL.

    The authors' recursion over experiences gives the weights of ridge regression on all samples
    (Zhuang et al., ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy
    Protection, NeurIPS 2022); here they follow from sums, so that experiences and clients may come
    in any order.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 8192 takes 1 GiB.
    On the command line: ``strategy=acil strategy.head.map=relu_linear:dim=8192``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(ACIL(model=toy.model(), map="relu_linear:dim=50"))
        [1.0, 1.0, 0.972]
    """

    settings = ACILConfig


class AFL(Recipe):
    """Least squares over a frozen backbone, from sums: AFL.

    Clients of AFL solve a regularised problem each, and the server combines the solutions and takes
    the regularisation out again (He et al., AFL: A Single-Round Analytic Approach for Federated
    Learning with Pre-trained Models, CVPR 2025). What comes out is ``G^-1 S`` of the summed Gram
    matrices ``G`` and class sums ``S``, which are a smaller message. A penalty of 10^-6 stands for
    none; with fewer samples than features choose a larger one.

    Stored between experiences: those sums, ``(D, D)`` and ``(C, D)``; no samples.
    On the command line: ``strategy=afl``; in a federation
    ``method.head=ridge method.head.regularization=1e-6``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AFL(model=toy.model()))  # accuracy after each experience
        [1.0, 0.958, 0.972]
    """

    settings = AFLConfig


class AIR(Recipe):
    """Ridge regression in which every class weighs alike, on random features: AIR.

    For long tails: the samples of a class are weighted by the inverse of their number (Fang et al.,
    AIR: Analytic Imbalance Rectifier for Continual Learning, 2024). The authors keep one Gram
    matrix a class, as ``strategy.head.balance=class`` does. The default ``balance=shared`` takes
    classes for scattered alike and keeps one for all, a C-th of the memory; the two are equal where
    all classes have one covariance.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 8192 takes 1 GiB.
    On the command line: ``strategy=air strategy.head.map=relu_linear:dim=8192``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``balance``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AIR(model=toy.model(), map="relu_linear:dim=50"))
        [1.0, 1.0, 0.972]
    """

    settings = AIRConfig


class Fed3R(Recipe):
    """Ridge regression with a bias and unit weights over a frozen backbone: Fed3R.

    Clients send the Gram matrix and the class sums of their features; the server solves once. The
    result is that of all samples in one place, whatever the split (Fanì et al., Accelerating
    Heterogeneous Federated Learning with Closed-form Classifiers, ICML 2024). As in the authors'
    repository the constant feature is shrunk like the others and each class's weights are divided
    by their norm; ``bias=False`` is the variant that FedCOF's repository compares with.

    Stored between experiences: those sums, ``(D, D)`` and ``(C, D)``; no samples.
    On the command line: ``strategy=fed3r strategy.head.regularization=0.1``; in a federation
    ``method.head=ridge method.head.bias=true method.head.normalize=true
    method.head.regularization=0.01``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(Fed3R(model=toy.model()))  # accuracy after each experience
        [1.0, 1.0, 0.944]
    """

    settings = Fed3RConfig


class FlyCL(Recipe):
    """Ridge regression on the largest of sparse random features: Fly-CL.

    Each random feature looks at few features, and of each sample the largest are kept, as in the
    olfactory circuit of a fly (Fly-CL, ICLR 2026). The authors choose the strength on the samples
    of the current experience; here generalised cross-validation chooses it from the sums over all,
    so that merged statistics choose alike.

    Stored between experiences: the Gram matrix ``(M, M)``, the class sums ``(C, M)`` and the seed
    of the random features; no samples. M = 2000 takes 64 MiB, the paper's M = 10000 takes 1.6 GiB.
    On the command line: ``strategy=flycl strategy.head.map=top_k:dim=10000:degree=300:keep=0.3``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``regularization``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(FlyCL(model=toy.model(), map="top_k:dim=50:degree=8"))
        [1.0, 0.958, 0.944]
    """

    settings = FlyCLConfig


class LoRanPAC(Recipe):
    """Least squares on the leading directions of random features: LoRanPAC.

    RanPAC's Gram matrix of ``M`` random features takes ``M^2`` numbers. Here its leading ``rank``
    eigenpairs are kept alone, updated by a singular value decomposition with each batch of up to
    8,192 samples, and the weights are those of least squares in their directions (LoRanPAC:
    Low-rank Random Features and Pre-trained Models for Bridging Theory and Practice in Continual
    Learning, ICLR 2025). An estimate: what is dropped depends on the order of experiences, within
    the bound ``strategy.memory.error_bound``; nothing can be forgotten; clients do not add up.

    Stored between experiences: eigenpairs ``(r, M)``, class sums ``(C, M)`` and the seed of the
    random features; no samples. M = 2000 and rank 500 take 8 MB, the paper's M = 100,000 and
    rank 10,000 take 8 GB, for a Gram matrix of 80 GB.
    On the command line: ``strategy=loranpac strategy.head.projection=10000``.

    Args:
        **settings: those of :class:`~protocl.heads.Ridge`, such as ``rank``, and of
            :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(LoRanPAC(model=toy.model(), projection=50, rank=20))
        [1.0, 0.958, 1.0]
    """

    settings = LoRanPACConfig
