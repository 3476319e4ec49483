"""What a run wrote of its books: its files are written anew when something was forgotten."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocl.errors import ConfigError, ProtoclError
from protocl.federation.books.audit import same_sums
from protocl.federation.config.compose import load
from protocl.federation.edges.files import leave_anew
from protocl.federation.methods.group_means.fedcof import GroupMerge
from protocl.federation.methods.prototypes import ExchangeConfig
from protocl.federation.server.strategy import FederatedPrototypes, Merge
from protocl.io.names import MODEL_FOLDER
from protocl.memory import PrototypeMemory
from protocl.report.result import CONFIG_FILE

logger = logging.getLogger(__name__)


def take_rule(strategy: FederatedPrototypes, run: Path) -> None:
    """Let a strategy merge as its run did, or fail where nobody knows how."""
    rule = _rule_of(run)
    if not strategy.rows:
        strategy.merge = rule
    elif isinstance(rule, GroupMerge):
        strategy.estimate = rule.of_sums
    else:
        strategy.merge = unknown_rule


def _rule_of(run: Path) -> Merge:
    """The rule by which a run merged its clients, by its settings; one that fails without them."""
    if not (run / CONFIG_FILE).exists():
        return unknown_rule
    try:
        (config,) = load([("federation", [str(run / CONFIG_FILE)])])
        method = config.method
        rule = method.build_merge() if isinstance(method, ExchangeConfig) else None
    except ConfigError as error:  # of a plug-in that is gone, or of another version
        logger.warning("%s does not say how clients are merged: %s", run / CONFIG_FILE, error)
        return unknown_rule
    return rule or unknown_rule


def unknown_rule(memories: Sequence[PrototypeMemory]) -> PrototypeMemory:
    """In place of a rule that is not known.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("the rule by which clients were merged is not in the books")


def merged_by(strategy: FederatedPrototypes) -> PrototypeMemory | None:
    """The merged memory; None where the rule is not known."""
    return None if strategy.merge is unknown_rule else strategy.memory


def write_outputs(
    strategy: FederatedPrototypes, run: Path, before: PrototypeMemory | None = None
) -> list[str]:
    """Write anew what was written of the books; what cannot be is removed, or named.

    Args:
        strategy: whose books they are.
        run: folder of the run, or of the server.
        before: its memory before something was forgotten; None where that is not known.
    """
    said, memory, ledger = [], run / "memory.safetensors", run / "ledger.jsonl"
    now = merged_by(strategy)
    if ledger.exists():
        strategy.merged.ledger.save(ledger)
    if memory.exists() and now is not None:
        now.save(memory)
    elif memory.exists():
        memory.unlink()
        said.append(f"{memory} was of before and is removed; the run writes it anew as it goes on")
    said += leave_anew(run, strategy, known=now is not None)
    if (run / MODEL_FOLDER).exists():
        said += _write_model(run / MODEL_FOLDER, before, now)
    return said


def _write_model(
    folder: Path, before: PrototypeMemory | None, now: PrototypeMemory | None
) -> list[str]:
    """Let a model know what the memory holds now, if it knew what that was before."""
    stays = f"{folder} is not of what remains"
    if now is None:
        return [f"{stays}: remove it, or take a class out of it by protocl forget"]
    try:
        return _replace(folder, before, now) or [
            f"{stays}: it is not of the memory as that was, since it was changed, a backup was "
            "restored, or forgetting was stopped on the way: remove it"
        ]
    except (ProtoclError, ValueError, OSError) as error:
        return [f"{stays}, and cannot be written anew ({error}): remove it"]


def _replace(folder: Path, before: PrototypeMemory | None, now: PrototypeMemory) -> list[str]:
    """What was done; nothing where the model is not of ``before``."""
    from protocl.model.changes.owner import alone
    from protocl.model.classifier import PrototypeClassifier
    from protocl.model.folder import load_model, save_model

    with alone(folder):
        model = load_model(folder)
        if not isinstance(model, PrototypeClassifier):
            return []
        if same_sums(model.memory_, now):
            return [f"{folder} is of what remains already"]
        if before is None or not same_sums(model.memory_, before):
            return []
        if not len(now):
            shutil.rmtree(folder)
            return [f"{folder} is removed, for nothing is left of it"]
        labels = dict(zip(model.ids_.tolist(), model.classes_, strict=True))
        kept = np.array([labels[class_id] for class_id in now.classes.tolist()])
        save_model(model.hold(now, kept, getattr(model, "encoder_", None)), folder)
    return [f"{folder} is written anew"]
