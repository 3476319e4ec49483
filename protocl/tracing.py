"""What changes while torch turns a module into a graph."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether ``torch.export`` is following the operations of this call.

    A graph holds operations on tensors alone, for a number of samples that is not known yet. So
    nothing may depend on the values or on the number of the samples: where a module refuses
    samples by their values, its graph answers NaN, and where it takes some samples after the
    others, its graph takes all.
    """
    # Before torch 2.7 no flag tells an export from a compilation.
    found = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(found())
