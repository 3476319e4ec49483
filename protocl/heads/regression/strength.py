"""The strength of a ridge regression that the statistics themselves choose."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.heads.regression.equations import PLAIN, Equations, Form
from protocl.heads.regression.spectrum import Spectrum
from protocl.memory import PrototypeMemory

NEAR = 0.03
"""Share by which a cross-validation score may exceed the least one and count as equal to it.

The score is a squared error, whose minimum is flat and lies at too large a strength where samples
are few; the least strength of like score ranks classes better. Of eleven shares from 0 to 0.3 this
one lost least on held-out samples against the best strength: 0.7 points of accuracy in the mean of
20 cases (digits, CIFAR-100 features, one sample a class; 20 to 5,000 samples) and 2.3 at worst,
where the minimum itself loses 1.7, and 7.2 at worst.
"""


def chosen_strength(spectrum: Spectrum, errors: Tensor, near: float) -> float:
    """The least strength of the grid whose error is within a share ``near`` of the best.

    Args:
        spectrum: what is solved; below the error of its matrix none is chosen.
        errors: one a strength of its grid.
        near: 0 or greater.
    """
    # What is less than the error of the matrix fits that error, and looks best by it.
    grid = torch.tensor(spectrum.grid, dtype=errors.dtype)
    sound = grid >= spectrum.error.cpu().clamp(max=grid[-1])
    errors = torch.where(sound, errors.cpu(), torch.inf)
    return spectrum.grid[int((errors <= errors.min() * (1 + near)).nonzero()[0])]


def warn_of_given_strength(regularization: float, memory: PrototypeMemory) -> None:
    """Say that a given strength leaves nothing of features that are small."""
    size = float(memory.squares.sum())
    if not 0 < size < regularization:
        return
    warnings.warn(
        f"regularization={regularization:g} outweighs features whose squares sum to {size:.1g}: "
        "scores are those of class sums, or of class sizes where there is a bias; use a smaller "
        "one or 'auto', or scale the features up",
        PrecisionWarning,
        stacklevel=6,
    )


def cross_validation_errors(spectrum: Spectrum) -> Tensor:
    """Generalised cross-validation score for each ``lambda`` of the spectrum's grid, ``(18,)``.

    ``(RSS / N) / (1 - sum_i e_i / (e_i + lambda) / N)^2`` with
    ``RSS = T - 2 tr(W^T S) + tr(W^T A W)``, infinite where the fit uses up every sample. ``T`` is
    the weight of all samples together, ``N`` where they weigh alike.

    Source: Golub, Heath & Wahba 1979, written for one-hot targets.
    """
    values, samples, mass = spectrum.values, spectrum.samples, spectrum.mass
    grid = torch.tensor(spectrum.grid, dtype=values.dtype, device=values.device)[:, None]
    energy = spectrum.rotated.square().sum(1)
    shrunk = values + grid
    if len(values) < len(spectrum.vectors):
        # All but nothing of the targets is left, and differences to it would be rounding.
        shares, left = energy / values, grid / shrunk
        beyond = (mass - shares.sum()).clamp(min=0) if len(values) < samples else 0.0
        residual = beyond + (shares * left.square()).sum(1)
        free = (samples - len(values) + left.sum(1)) / samples
    else:
        residual = mass + (energy * (values / shrunk - 2) / shrunk).sum(1)
        free = 1 - (values / shrunk).sum(1) / samples
    score = residual.clamp(min=0) / samples / free.square()
    return torch.where(free > 1e-6, score, torch.inf)


def heldout_errors(spectrum: Spectrum, heldout: PrototypeMemory, form: Form = PLAIN) -> Tensor:
    """Mean squared error on held-out samples for each ``lambda`` of the spectrum's grid, ``(18,)``.

    ``[tr(W^T A1 W) - 2 tr(W^T S1) + T1] / (T1 C)`` with ``W`` fitted on the rest: the same numbers
    as predicting the held-out samples one by one (RanPAC, algorithm 1), from their sums alone.

    Args:
        spectrum: of the samples that are not held out.
        heldout: their statistics, over classes that the others know.
        form: what is regressed; with balance, all classes weigh alike in the error too.
    """
    equations = Equations(heldout, form)
    gram = spectrum.vectors.T @ equations.matrix() @ spectrum.vectors
    sums = torch.zeros_like(spectrum.rotated)
    places = torch.searchsorted(spectrum.classes, heldout.classes)
    sums[:, places] = spectrum.vectors.T @ equations.targets
    errors = []
    for regularization in spectrum.grid:
        weights = spectrum.rotated / (spectrum.values + regularization)[:, None]
        errors.append((weights * (gram @ weights - 2 * sums)).sum() + equations.mass)
    return torch.stack(errors) / (equations.mass * len(spectrum.classes))
