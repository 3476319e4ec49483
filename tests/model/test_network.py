"""Backbone, normalisation and head as one module."""

from __future__ import annotations

import pytest
import torch

from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.errors import ConfigError, NotFittedError
from protocl.heads import LinearDiscriminant, NearestMean
from protocl.model import Network

IMAGES = torch.randint(0, 256, (12, 1, 16, 16), generator=torch.Generator().manual_seed(1)).byte()
LABELS = torch.tensor([7, 3, 5]).repeat(4)


def fitted(features, head=None):
    head = head or NearestMean()
    return head.fit(head.new_memory(features.shape[1]).update(features, LABELS[: len(features)]))


def conv4():
    return build_backbone(BackboneConfig("conv4", width=8), (1, 16, 16), seed=0).eval()


def test_logits_are_those_of_the_head_on_the_backbone_s_features():
    backbone = conv4()
    features = backbone(IMAGES)
    network = Network(backbone, fitted(features.detach()))
    assert network(IMAGES).equal(network.head(features))
    assert network.class_names == ["3", "5", "7"]


def test_a_backbone_in_training_mode_is_put_in_evaluation_mode():
    features = conv4()(IMAGES).detach()
    network = Network(conv4().train(), fitted(features))
    torch.testing.assert_close(network(IMAGES[:1]), network.head(features[:1]))
    assert not network.backbone.training


def test_samples_are_normalised_where_no_backbone_does_it():
    features = torch.rand(12, 2, generator=torch.Generator().manual_seed(2))
    mean, std = (0.5, -1.0), (2.0, 0.25)
    scaled = (features - torch.tensor(mean)) / torch.tensor(std)
    network = Network(None, fitted(scaled), mean=mean, std=std)
    assert network(features).equal(network.head(scaled))
    assert network.preprocessing() == {"mean": [0.5, -1.0], "std": [2.0, 0.25]}


def test_one_number_normalises_every_channel():
    images = IMAGES.float() / 255
    backbone = torch.nn.Flatten()
    network = Network(backbone, fitted((images / 0.5).flatten(1)), std=[0.5])
    assert network(images).equal(network.head((images / 0.5).flatten(1)))


def test_what_the_parts_refuse_is_refused():
    network = Network(conv4(), fitted(conv4()(IMAGES).detach()))
    with pytest.raises(ValueError, match=r"images have values in 0\.\.255"):
        network(IMAGES.float())
    features = torch.rand(12, 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Network(None, fitted(features))(torch.full((1, 2), torch.nan))


def test_names_belong_to_the_classes_for_which_they_were_given():
    features = torch.rand(12, 2, generator=torch.Generator().manual_seed(3))
    network = Network(None, fitted(features), class_names=["drei", "fünf", "sieben"])
    assert network.class_names == ["drei", "fünf", "sieben"]
    head = network.head
    head.fit(head.new_memory(2).update(features, LABELS + 1))
    with pytest.raises(ConfigError, match="other classes"):
        _ = network.class_names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["a"]}, "expected 3 names"),
        ({"class_names": "abc"}, "expected 3 names"),
        ({"mean": []}, "finite numbers"),
        ({"mean": [float("nan")]}, "finite numbers"),
        ({"std": [1.0, 0.0]}, "numbers > 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Network(None, fitted(torch.rand(12, 2)), **settings)


def test_a_backbone_that_normalises_takes_no_second_normalisation():
    backbone = build_backbone(BackboneConfig("vit", width=64), (1, 16, 16), seed=0)
    with pytest.raises(ConfigError, match="normalises images itself"):
        Network(backbone, fitted(torch.rand(12, 64)), mean=[0.5])


def test_only_a_fitted_head_makes_a_network():
    with pytest.raises(NotFittedError, match="LinearDiscriminant"):
        Network(None, LinearDiscriminant())
    with pytest.raises(TypeError, match="lda"):
        Network(None, "lda")


def test_a_trained_layer_takes_the_place_of_a_head_where_its_classes_have_names():
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(ConfigError, match="Linear names no classes"):
        Network(None, layer)
    network = Network(None, layer, class_names=["a", "b", "c"])
    features = torch.rand(4, 2)
    assert network(features).equal(layer(features))
    assert (network.classes, network.class_names) == ([0, 1, 2], ["a", "b", "c"])
    layer.register_buffer("classes", torch.tensor([4, 2, 9]))
    assert Network(None, layer).class_names == ["4", "2", "9"]
    with pytest.raises(NotFittedError, match="no calibration"):
        network.with_probabilities(features)
