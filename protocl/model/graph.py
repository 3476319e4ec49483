"""A model as a graph: the network that answers as it does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protocl.errors import ConfigError
from protocl.model.classifier import PrototypeClassifier
from protocl.model.export import export_onnx
from protocl.model.folder import Model
from protocl.model.network import Network
from protocl.model.trained import TrainedClassifier


def export_model(
    model: Model, path: str | os.PathLike[str], *, probabilities: bool = False
) -> Path:
    """Write a model as an ONNX file: see :func:`protocl.model.export_onnx`.

    Its input are images ``(N, C, H, W)`` uint8 of the size that the model has learned from, which
    the graph scales, resizes and normalises itself; or features ``(N, D)`` float32.

    Args:
        model: a classifier that knows a class.
        path: file to write.
        probabilities: give calibrated probabilities as a second output.

    Raises:
        ConfigError: nothing is known; or as there.
        ValueError: probabilities are asked of a model that keeps too little for them.
    """
    if not len(model.classes_):
        raise ConfigError("the model knows no class: teach it before it is exported")
    if isinstance(model, TrainedClassifier):
        names, head = model.labels, model.answer
    else:
        names = model.classes_[np.argsort(model.ids_)]
        head = model.head_.fit(model.memory_)
        if probabilities:
            model.head_.calibrate(model.memory_)
    encoder = getattr(model, "encoder_", None)
    network = Network(
        None if encoder is None else encoder.backbone, head, class_names=[str(n) for n in names]
    )
    return export_onnx(network, _example(model), path, probabilities=probabilities)


def _example(model: Model) -> Tensor:
    encoder = getattr(model, "encoder_", None)
    if encoder is None and isinstance(model, PrototypeClassifier):
        return torch.zeros(1, model.memory_.feature_dim)
    assert encoder is not None
    assert encoder.shape is not None  # it has seen samples
    kind = torch.uint8 if len(encoder.shape) == 3 else torch.float32
    return torch.zeros(1, *encoder.shape, dtype=kind)
