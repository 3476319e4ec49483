"""Feature extractors by name, with their preprocessing inside.

A backbone takes images ``(N, C, H, W)`` in [0, 1], or feature vectors, and gives ``(N, D)``.
"""

from protocl.backbones.base import Backbone, Classifier, fingerprint
from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.backbones.layers.choice import read_layers
from protocl.backbones.layers.scale import standardise
from protocl.backbones.weights import load_weights, save_weights

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Classifier",
    "build_backbone",
    "fingerprint",
    "load_weights",
    "read_layers",
    "save_weights",
    "standardise",
]
