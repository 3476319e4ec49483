"""Augmentation of training images in a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from protocl.data.augmentation.image_augmentation import (
    TrainingAugmentation,
    crop_and_flip,
    full_augmentation,
    named_augmentation,
)
from protocl.errors import ConfigError


def test_names_say_what_is_drawn() -> None:
    images = torch.rand(8, 3, 12, 12)
    assert named_augmentation("none") is None
    shifted = named_augmentation("crop_flip")
    assert shifted is not None
    # Crops and flips move pixels, or bring in zeros; they change no value.
    assert torch.isin(shifted(images), torch.cat([images.flatten(), torch.zeros(1)])).all()
    coloured = named_augmentation("full")
    assert coloured is not None
    assert not torch.isin(coloured(images), torch.cat([images.flatten(), torch.zeros(1)])).all()
    with pytest.raises(ConfigError, match="none, crop_flip or full"):
        named_augmentation("flip")


def test_every_mini_batch_is_drawn_anew_and_the_data_stay() -> None:
    images = torch.rand(4, 3, 8, 8)
    kept = images.clone()
    torch.manual_seed(0)
    seen = []
    for _ in range(2):
        strategy = SimpleNamespace(mbatch=[images, torch.zeros(4)])
        TrainingAugmentation(crop_and_flip()).before_training_iteration(strategy)
        seen.append(strategy.mbatch[0])
    assert seen[0].shape == images.shape
    assert not torch.equal(*seen)
    assert torch.equal(images, kept)


def test_standardised_images_are_augmented_as_they_were_before() -> None:
    augment = full_augmentation()
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    torch.manual_seed(0)
    expected = augment(images)
    torch.manual_seed(0)
    torch.testing.assert_close(augment(5 * images - 2), 5 * expected - 2)
