"""Augmented views: each image its own draw, pixels in [0, 1], seeded, on the device."""

from __future__ import annotations

import pytest
import torch

from protocl.data.augmentation.image_augmentation import ImageAugmentation
from protocl.strategies.training.views import AugmentedViews, named_views


def images(count: int = 40, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, 8, 8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images(channels):
    torch.manual_seed(0)
    found = ImageAugmentation()(images(channels=channels))
    assert found.shape == (40, channels, 8, 8)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_nothing_switched_on_changes_nothing():
    plain = ImageAugmentation(padding=0, flip=0, jitter=0, grayscale=0)
    assert torch.equal(plain(images()), images())


def test_vectors_pass():
    x = torch.rand(4, 7)
    assert ImageAugmentation()(x) is x


def test_the_seed_decides():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(ImageAugmentation()(images()))
    assert torch.equal(*found)


def test_crops_are_shifts_that_differ_between_images():
    torch.manual_seed(0)
    augment = ImageAugmentation(padding=2, flip=0, jitter=0, grayscale=0)
    row = torch.arange(1.0, 9.0)
    positions = (row[:, None] * 10 + row).expand(200, 1, 8, 8)
    found = augment(positions)
    padded = torch.nn.functional.pad(positions[:1], [2] * 4)
    shifts = [padded[0, :, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    matches = torch.stack([(found == shift).all((1, 2, 3)) for shift in shifts])
    assert matches.any(0).all()
    assert matches.any(1).all(), "every shift occurs"


def test_flips_happen_with_their_probability():
    torch.manual_seed(0)
    augment = ImageAugmentation(padding=0, flip=0.25, jitter=0, grayscale=0)
    x = images(400)
    found = augment(x)
    flipped = (found == x.flip(3)).all((1, 2, 3))
    assert ((found == x).all((1, 2, 3)) | flipped).all()
    assert 0.15 < float(flipped.double().mean()) < 0.35


def test_greyscale_has_equal_channels():
    torch.manual_seed(0)
    found = ImageAugmentation(padding=0, flip=0, jitter=0, grayscale=1)(images())
    torch.testing.assert_close(found[:, :1].expand_as(found), found)


def test_views_are_drawn_independently():
    torch.manual_seed(0)
    first, second = AugmentedViews(ImageAugmentation())(images()).chunk(2)
    assert not torch.equal(first, second)
    copies = named_views("copies", 3)(images(2))
    assert torch.equal(copies, images(2).repeat(3, 1, 1, 1))


def test_refusals():
    with pytest.raises(ValueError, match="views=two: expected auto, augmented, crop_flip, copies"):
        named_views("two")
    with pytest.raises(ValueError, match="count=0: expected at least one view"):
        AugmentedViews(count=0)


def test_views_that_fit_the_input() -> None:
    views = named_views("auto")
    grey, colour = torch.rand(4, 1, 8, 8), torch.rand(4, 3, 8, 8)
    assert torch.equal(views(grey), torch.cat([grey, grey]))
    assert torch.equal(views(grey.flatten(1)), torch.cat([grey, grey]).flatten(1))
    torch.manual_seed(0)
    drawn = views(colour)
    torch.manual_seed(0)
    assert torch.equal(drawn, named_views("augmented")(colour))
