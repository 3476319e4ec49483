"""The model that a finished run leaves behind."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from protocl.backbones import Backbone
from protocl.config import StrategyConfig
from protocl.io.names import MODEL_FOLDER
from protocl.model.answers import Answering, LinearAnswer
from protocl.model.encoder import Encoder
from protocl.model.folder import Parts, write
from protocl.model.labels import Labels

logger = logging.getLogger(__name__)


def kept_answer(config: StrategyConfig, strategy: Any) -> Answering | None:
    """What answers for a strategy that has learned; None where no model can hold it.

    Args:
        config: of the strategy; see :meth:`protocl.config.StrategyConfig.kept_answer`.
        strategy: after its last experience.
    """
    found: Answering | None = config.kept_answer(strategy)
    if found is not None:
        return found
    for owner in (strategy, *strategy.plugins):
        if hasattr(owner, "final_answer"):
            answer: Answering | None = owner.final_answer()
            return answer
    layer = getattr(strategy.model, "classifier", None)
    return LinearAnswer.of(layer) if isinstance(layer, nn.Linear) else None


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
    ids = answer[1].classes if isinstance(answer, tuple) else answer.classes
    write(Parts(answer, _labels(class_names, ids.tolist()), encoder), run / MODEL_FOLDER)


def _labels(names: Sequence[str], ids: Sequence[int]) -> Labels:
    """Names of classes; where several have one name, with their ids behind it."""
    bearers = Counter(names)
    return np.array([names[i] if bearers[names[i]] == 1 else f"{names[i]} ({i})" for i in ids])
