"""Features of every type: what float32 keeps of them, and what it would cut."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from protocl.data.samples import to_samples
from protocl.errors import DataError, PrecisionWarning

FAR = 1.7e9 + np.random.default_rng(0).random((50, 3)) * [1, 1e9, 0]


def test_columns_that_float32_cuts_away_are_named() -> None:
    with pytest.warns(PrecisionWarning, match=r"f: column\(s\) 0 vary .* subtract an offset"):
        to_samples(FAR, "f")
    with pytest.warns(PrecisionWarning, match="column"):
        to_samples(FAR.astype(np.int64) * 3 + np.arange(50)[:, None], "f")


def test_truth_values_and_integers_are_features() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (bool, np.int64, np.uint8, np.float16, np.float64):
            assert to_samples(np.eye(3, dtype=kind), "f").tolist() == np.eye(3).tolist()
        to_samples(FAR.astype(np.float32), "f")  # nothing is cut here
        to_samples(np.full((9, 1), 0.1), "f")
    with pytest.raises(DataError, match="f is complex128; expected numbers"):
        to_samples(np.eye(3) * 1j, "f")
