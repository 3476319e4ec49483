"""Models on disk: one folder that holds all that is needed to use, teach and move a classifier.

=========================== ===========================================================
file                        content
=========================== ===========================================================
``model.json``              backbone and inputs, head and its settings, versions
``memory.safetensors``      the statistics, and the labels of their classes
``unknown.json``            score of unknown inputs and its calibration, where one is chosen
``answer.safetensors``      trained parameters in the place of a memory
``backbone.safetensors``    weights, unless a package brings them
``journal-*.jsonl``         changes by a server, which can still be undone
``thumbnails/``             of what a server was taught, if it was told to keep them
=========================== ===========================================================

Teaching and forgetting replace ``memory.safetensors`` and nothing else, so that a killed process
leaves the model as it was before or as it is after; a journal belongs to one such file, and ends
with it. Nothing in a model is a pickle, and equal models are equal bytes: no times, no revisions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from protocl import __version__
from protocl.backbones import Backbone
from protocl.errors import ConfigError, DataError, FingerprintError
from protocl.heads.base import Head
from protocl.heads.written_settings import restored
from protocl.io.atomic import atomic_folder, is_occupied
from protocl.io.names import MODEL_FOLDER
from protocl.memory import PrototypeMemory
from protocl.memory import file as memory_file
from protocl.model.answers import Answer, Answering
from protocl.model.changes.change import Change, like_model, replayed
from protocl.model.changes.journal import Journal, discard_journals
from protocl.model.changes.owner import require_unserved
from protocl.model.changes.thumbnails import Thumbnails
from protocl.model.description import (
    DESCRIPTION,
    FORMAT,
    Description,
    Named,
    checksum_of,
    named,
    read_description,
)
from protocl.model.encoder import Encoder
from protocl.model.kept_backbone import KeptBackbone
from protocl.model.labels import Labels
from protocl.model.trained import TrainedClassifier
from protocl.model.unknown.kept import read_unknown, write_unknown
from protocl.open_world.calibration import ScoreCalibration
from protocl.registry import ANSWERS, HEADS, Registry

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier

Model: TypeAlias = "PrototypeClassifier | TrainedClassifier"
MEMORY = "memory.safetensors"
ANSWER = "answer.safetensors"
_LABELS = "labels"


class Parts(NamedTuple):
    """What a model is made of, whoever uses it.

    Attributes:
        answering: the head and its memory, or trained parameters.
        labels: ``(C,)`` of the classes, in the order of ids or of the answer's columns.
        encoder: of samples; None where they are features.
        unknown: the score that tells what is unknown, and its calibration.
    """

    answering: Answering
    labels: Labels
    encoder: Encoder | None
    unknown: tuple[str | None, ScoreCalibration | None] = (None, None)


def save_model(
    model: Model, path: str | os.PathLike[str], *, pending: Sequence[Change] = ()
) -> None:
    """Write a classifier to a folder, so that :func:`load_model` gives the same answers.

    Args:
        model: fitted.
        path: the folder; made if absent. Of a model of the same kind that is there, what it knows
            is replaced.
        pending: changes that come on top of what the classifier knows, and can still be undone.

    Raises:
        ValueError: the classifier knows nothing, or has parts that a folder cannot name.
        DataError: the folder holds something else.
        ConfigError: another process serves the model.
    """
    write(parts_of(model), Path(path), pending)


def parts_of(model: Model) -> Parts:
    """What a model is made of.

    Raises:
        ValueError: it has not learned yet.
    """
    encoder = getattr(model, "encoder_", None)
    if isinstance(model, TrainedClassifier):
        return Parts(model.answer, model.labels, encoder)
    if not hasattr(model, "memory_"):
        raise ValueError("the classifier has not learned yet: call fit or partial_fit first")
    labels = model.classes_[np.argsort(model.ids_)]
    unknown = model.unknown_score, model.calibration_
    return Parts((model.head_, model.memory_), labels, encoder, unknown)


def write(parts: Parts, folder: Path, pending: Sequence[Change] = ()) -> None:
    """Write what a model is made of: see :func:`save_model`."""
    require_unserved(folder, but_by_us=True)
    there = read_description(folder) if (folder / DESCRIPTION).exists() else None
    description = describe(parts, there)
    # Another version may have written what is there, and reads what is written now.
    if there is not None and there.model_copy(update={"versions": description.versions}) == (
        description
    ):
        _replace_state(parts, folder, pending)
        return
    if is_occupied(folder):
        raise DataError(
            f"{folder} holds something else, or a model of another head or backbone; choose "
            "another folder, or remove it"
        )
    with atomic_folder(folder) as temporary:
        if parts.encoder is not None and description.backbone is not None:
            description.backbone.save(parts.encoder.backbone, temporary)
        _write_state(parts, temporary)
        content = description.model_dump(mode="json")
        content["checksum"] = checksum_of(content)
        text = json.dumps(content, indent=1, allow_nan=False)
        (temporary / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def _replace_state(parts: Parts, folder: Path, pending: Sequence[Change]) -> None:
    """Write what a model knows, and beside it what comes on top; end the changes until then."""
    if not isinstance(parts.answering, tuple):
        _write_state(parts, folder)
        return
    discard_journals(folder, keep=Journal(folder, memory_file.identity(folder / MEMORY)))
    journal = Journal(folder, memory_file.sealed(*_state(parts))[memory_file.CHECKSUM])
    if pending:
        journal.rewrite(pending)
    _write_state(parts, folder)  # from here on that journal holds, and no other
    discard_journals(folder, keep=journal if pending else None)
    if not pending:
        Thumbnails(folder).keep(parts.answering[1].classes.tolist())


def load_model(path: str | os.PathLike[str], *, backbone: Backbone | None = None) -> Model:
    """Read a model: a :class:`protocl.PrototypeClassifier`, or one that learns no more.

    Args:
        path: the folder, or that of the run that left it.
        backbone: the network, where the model was made with one of its owner's.

    Returns:
        A :class:`protocl.PrototypeClassifier` where the model holds statistics, else a
        :class:`protocl.model.TrainedClassifier`.

    Raises:
        DataError: the folder is no model, damaged, or needs a package that is not installed.
        FingerprintError: the backbone is not what it was.
    """
    model, changes = read_model(model_folder(path), backbone)
    if isinstance(model, TrainedClassifier) or not changes:
        return model
    return like_model(replayed(model, changes), model)


def read_model(folder: Path, backbone: Backbone | None = None) -> tuple[Model, list[Change]]:
    """A model as its statistics have it, and the changes in its journal, which come on top.

    Args, Raises: as :func:`load_model`.
    """
    found = read_description(folder)
    encoder = None
    if found.backbone is not None:
        network = found.backbone.load(folder, backbone)
        encoder = Encoder(network, found.shape, batch_size=found.batch_size)
    if found.answer is not None:
        if encoder is None:
            raise DataError(f"{folder / DESCRIPTION} is damaged: an answer without a backbone")
        return _load_answer(folder, found.answer, encoder), []
    if found.head is None:
        raise DataError(f"{folder / DESCRIPTION} is damaged: neither a head nor an answer")
    return _load_memory(folder, found, encoder)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a model, given it or the run that left it."""
    inside = Path(path) / MODEL_FOLDER
    return inside if (inside / DESCRIPTION).is_file() else Path(path)


def describe(parts: Parts, there: Description | None = None) -> Description:
    """What ``model.json`` says of a model, given what it says already, if it is there."""
    answering, encoder, head, answer = parts.answering, parts.encoder, None, None
    if isinstance(answering, tuple):
        head = named(HEADS, answering[0], answering[0].get_params())
    else:
        answer = named(ANSWERS, answering, answering.arguments)
    known = None if there is None else there.backbone
    return Description(
        head=head,
        answer=answer,
        backbone=None if encoder is None else KeptBackbone.of(encoder.backbone, known),
        shape=None if encoder is None or encoder.shape is None else list(encoder.shape),
        batch_size=None if encoder is None else encoder.batch_size,
        versions={"protocl": __version__, "torch": torch.__version__},
    )


def _write_state(parts: Parts, folder: Path) -> None:
    if not isinstance(parts.answering, tuple):
        labels = {_LABELS: json.dumps(parts.labels.tolist())}
        memory_file.write(folder / ANSWER, labels, parts.answering.state_dict(), kind=FORMAT)
        return
    # First, so that no kill leaves the calibration of what is forgotten; of others it says so.
    write_unknown(folder, *parts.unknown)
    memory_file.write(folder / MEMORY, *_state(parts))


def _state(parts: Parts) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Description and arrays of statistics, as a file holds them."""
    assert isinstance(parts.answering, tuple)
    _, memory = parts.answering
    labels = {_LABELS: json.dumps(parts.labels.tolist())}
    return memory_file.description_of(memory) | labels, memory_file.arrays_of(memory)


def read_memory(folder: Path) -> tuple[PrototypeMemory, Labels]:
    """The statistics of a model, and the labels ``(C,)`` of their classes in the order of ids.

    Raises:
        DataError: the file is absent or damaged, or there is not one label for each class.
    """
    header, arrays = memory_file.read(folder / MEMORY)
    labels = _labels(header, folder / MEMORY)
    memory = PrototypeMemory.from_parts(PrototypeMemory.described(header), arrays)
    if len(np.unique(labels)) != len(memory):
        raise DataError(
            f"{folder / MEMORY} is damaged: {len(labels)} labels for {len(memory)} classes"
        )
    return memory, labels


def _read_changed(folder: Path) -> tuple[PrototypeMemory, Labels, list[Change]]:
    """Statistics and the changes that belong to them, though a server may replace both."""
    while True:
        before = memory_file.identity(folder / MEMORY)
        memory, labels = read_memory(folder)
        changes = Journal(folder, before).read()
        if memory_file.identity(folder / MEMORY) == before:
            return memory, labels, changes


def _load_memory(
    folder: Path, found: Description, encoder: Encoder | None
) -> tuple[PrototypeClassifier, list[Change]]:
    from protocl.model.classifier import PrototypeClassifier

    memory, labels, changes = _read_changed(folder)
    assert found.head is not None
    head: Head = _made(HEADS, found.head, folder)
    _require_partners(folder, found, head, memory)
    if encoder is not None and encoder.backbone.feature_dim != memory.feature_dim:
        raise FingerprintError(
            f"{folder / MEMORY} holds {memory.feature_dim} features and its backbone gives "
            f"{encoder.backbone.feature_dim}: it belongs to another model"
        )
    made = PrototypeClassifier(
        head,
        backbone=None if encoder is None else encoder.backbone,
        forgettable=memory.level != "shared",
        exact=memory.exact,
        step=memory.step,
    )
    made.hold(memory, labels, encoder)
    made.unknown_score, made.calibration_ = read_unknown(folder)
    return made, changes


def _load_answer(folder: Path, answer: Named, encoder: Encoder) -> TrainedClassifier:
    header, tensors = memory_file.read(folder / ANSWER, kind=FORMAT)
    made: Answer = _made(ANSWERS, answer, folder)
    return TrainedClassifier(made.hold(**tensors), _labels(header, folder / ANSWER), encoder)


def _made(registry: Registry, part: Named, folder: Path) -> Any:
    """The registered part that a description names."""
    try:
        return registry.get(part.name)(**restored(part.settings))
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / DESCRIPTION}: its {registry.kind} '{part.name}' cannot be made: {error}; "
            "install the package that brings it, or restore the file from a copy"
        ) from error


def _require_partners(
    folder: Path, found: Description, head: Head, memory: PrototypeMemory
) -> None:
    """Refuse a memory of another backbone or head, such as one copied from another model."""
    file = folder / MEMORY
    backbone = None if found.backbone is None else found.backbone.fingerprint
    if memory.fingerprint is not None and memory.fingerprint != backbone:
        raise FingerprintError(
            f"{file} was built from backbone {memory.fingerprint}, not from that of its model, "
            f"{backbone}: it belongs to another model"
        )
    wanted, given = head.feature_map(memory.feature_dim).spec, memory.feature_map.spec
    if wanted != given or not memory.provides(head.required_level):
        raise DataError(
            f"{file} does not suit the head of its model, which needs level {head.required_level} "
            f"under the map '{wanted}': it has level {memory.level} under '{given}', and belongs "
            "to another model"
        )


def _labels(header: dict[str, str], file: Path) -> Labels:
    try:
        labels = json.loads(header[_LABELS])
        kinds = {type(label) for label in labels}
        if not isinstance(labels, list) or len(kinds) > 1 or kinds - {str, int, float, bool}:
            raise ValueError("expected a list of texts, numbers or truth values")
        return np.array(labels)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged: it has no labels ({error})") from error
