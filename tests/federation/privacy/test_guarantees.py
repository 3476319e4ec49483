"""What epsilon is against whom: brute-force sensitivities, and the noise that one knows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.federation.privacy.guarantees import audiences, epsilons, replacement_square
from protocl.federation.privacy.mechanism import GaussianMechanism, clipped_memory
from protocl.federation.privacy.release import PrivateRelease
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.memory.batch import LEVELS
from protocl.memory.feature_maps import Tukey

CLIP = 1.0


def layout(level: str, **options: object) -> StatisticsLayout:
    return StatisticsLayout(PrototypeMemory(3, level, exact=True, **options), range(3))  # type: ignore[arg-type]


def normalised_square(form: StatisticsLayout, moved: np.ndarray) -> float:
    """Squared change, each part in its own sensitivity, over the number of parts."""
    variances = GaussianMechanism(CLIP, 1.0).variances(form)
    return sum(
        float((moved[form.parts[name]].astype(float) ** 2).sum()) / variance
        for name, variance in variances.items()
    )


def vector(form: StatisticsLayout, features: list[float], label: int) -> np.ndarray:
    """The statistics of one sample."""
    sample = torch.tensor([features]), torch.tensor([label])
    mechanism = GaussianMechanism(CLIP, 1.0)
    return form.pack(clipped_memory(form.empty_memory(), *sample, mechanism))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_replacing_a_sample_changes_no_more_than_stated(level: str, data: st.DataObject) -> None:
    form = layout(level)
    coordinate = st.floats(-2, 2, width=32)
    pair = torch.tensor(
        data.draw(st.lists(st.lists(coordinate, min_size=3, max_size=3), min_size=2, max_size=2))
    )
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=2)))
    one, other = (
        form.pack(
            clipped_memory(
                form.empty_memory(),
                pair[i : i + 1],
                labels[i : i + 1],
                GaussianMechanism(CLIP, 1.0),
            )
        )
        for i in (0, 1)
    )
    assert normalised_square(form, one) <= 1.0
    assert normalised_square(form, one - other) <= float(replacement_square(form)) + 1e-9


def test_replacements_come_as_near_as_rounding_lets_them() -> None:
    """Opposite features of one class, and equal features of two classes."""
    for level, options, expected in (
        ("mean", {}, Fraction(2)),
        ("diagonal", {}, Fraction(2)),
        ("shared", {}, Fraction(2)),
        ("full", {}, Fraction(2)),
        ("mean", {"feature_map": Tukey(0.5), "raw_means": True}, Fraction(8, 3)),
    ):
        form = layout(level, **options)
        assert replacement_square(form) == expected, (level, options)
    form = layout("mean")
    one, other = vector(form, [1.0, 0.0, 0.0], 0), vector(form, [-1.0, 0.0, 0.0], 0)
    assert normalised_square(form, one - other) == pytest.approx(2.0, rel=1e-3)


def release(placement: str, contributors: int) -> PrivateRelease:
    mechanism = GaussianMechanism.for_budget(1.0, 8.0, 1e-5)
    return PrivateRelease(mechanism, layout("mean"), placement, contributors)  # type: ignore[arg-type]


@pytest.mark.parametrize(("parties", "before"), [(2, 12.18), (4, 9.51), (10, 8.52)])
def test_a_participant_that_subtracts_its_own_noise_gains_nothing(
    parties: int, before: float
) -> None:
    """Where all contributors carry the noise together, one of them leaves too little."""
    agreed = release("distributed", parties)
    assert shown(agreed, Fraction(parties - 1, parties)) == pytest.approx(before, abs=0.01)
    # The others alone are enough where as many as are honest carry it.
    agreed = release("distributed", parties - 1)
    against = audiences(agreed, parties, staying=parties, colluders=1)
    assert shown(agreed, against["colluders"].noise) == pytest.approx(8.0, abs=1e-3)


def shown(agreed: PrivateRelease, noise: Fraction) -> float:
    return epsilons(agreed.mechanism, agreed.layout, 1e-5, noise)["add_remove"]


def test_who_knows_how_much_noise() -> None:
    """Ten clients of whom seven stay; six of them may pool what they know."""
    against = audiences(release("distributed", 4), 10, staying=7, colluders=6)
    assert against["outsiders"].noise == Fraction(7, 4)
    assert against["colluders"].noise == 1
    # Who says that seven are honest cannot have six colluders of ten: four hold 4/7 of the noise.
    assert audiences(release("distributed", 7), 10, 7, 6)["colluders"].noise == Fraction(4, 7)
    assert audiences(release("local", 1), 10, 7, 6)["colluders"].noise == 1
    assert audiences(release("local", 1), 10, 7, 6)["outsiders"].noise == 7
    assert audiences(release("central", 1), 10, 7, 6)["colluders"].noise == 1


def test_replacing_costs_more_than_adding() -> None:
    agreed = release("central", 1)
    both = epsilons(agreed.mechanism, agreed.layout, 1e-5, Fraction(1))
    z = agreed.mechanism.noise_multiplier
    assert both["add_remove"] == pytest.approx(8.0, abs=1e-3)
    assert both["replace_one"] == pytest.approx(
        GaussianMechanism(1.0, z / math.sqrt(2)).epsilon(1e-5)
    )
