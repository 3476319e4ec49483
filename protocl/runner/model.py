"""The model that a finished run leaves behind."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocl.backbones import Backbone
from protocl.io.names import MODEL_FOLDER
from protocl.model.answers import Answering
from protocl.model.classifier import PrototypeClassifier
from protocl.model.encoder import Encoder
from protocl.model.folder import save_model
from protocl.model.labels import Labels
from protocl.model.trained import TrainedClassifier

logger = logging.getLogger(__name__)


def model_of(
    answer: Answering, encoder: Encoder, class_names: Sequence[str]
) -> PrototypeClassifier | TrainedClassifier:
    """The classifier of a run.

    Args:
        answer: what answered in it; its class ids are places in ``class_names``.
        encoder: of its samples.
        class_names: one name for each class id.
    """
    if not isinstance(answer, tuple):
        answer = answer.cpu()
        return TrainedClassifier(answer, _labels(class_names, answer.classes.tolist()), encoder)
    head, memory = answer
    memory = memory.copy().cpu()
    return PrototypeClassifier(
        head, backbone=encoder.backbone, forgettable=memory.level != "shared",
        exact=memory.exact, step=memory.step,
    ).hold(memory, _labels(class_names, memory.classes.tolist()), encoder)  # fmt: skip


def write_model(
    run: Path,
    answer: Answering | None,
    backbone: Backbone,
    shape: Sequence[int],
    class_names: Sequence[str],
    batch_size: int | None = None,
) -> None:
    """Write ``model/`` into the folder of a run.

    Args:
        run: the folder.
        answer: what answered; None where no model can hold it, which is said.
        backbone: what it answered on.
        shape: of one sample.
        class_names: one name for each class id.
        batch_size: samples a forward pass at evaluation; None for that of a feature pass.
    """
    if answer is None:
        logger.warning(
            "%s: its method keeps nothing that a model can hold; no %s/", run, MODEL_FOLDER
        )
        return
    shutil.rmtree(run / MODEL_FOLDER, ignore_errors=True)  # of a run that was killed after it
    encoder = Encoder(backbone.cpu(), shape, batch_size=batch_size)
    save_model(model_of(answer, encoder, class_names), run / MODEL_FOLDER)


def _labels(names: Sequence[str], ids: Sequence[int]) -> Labels:
    """Names of classes; where several have one name, with their ids behind it."""
    return np.array([
        names[i] if names.count(names[i]) == 1 else f"{names[i]} ({i})" for i in ids
    ])  # fmt: skip
