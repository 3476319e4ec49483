"""Models on disk: one folder that holds all that is needed to use, teach and move a classifier.

=========================== ===========================================================
file                        content
=========================== ===========================================================
``model.json``              backbone and inputs, head and its settings, versions
``memory.safetensors``      the statistics, and the labels of their classes
``answer.safetensors``      trained parameters in the place of a memory
``backbone.safetensors``    weights, unless a package brings them
=========================== ===========================================================

Teaching and forgetting replace ``memory.safetensors`` and nothing else, so that a killed process
leaves the model as it was before or as it is after. Nothing in a model is a pickle, and equal
models are equal bytes: no times, no revisions.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, ValidationError

from protocl import __version__
from protocl.backbones import Backbone
from protocl.errors import ConfigError, DataError, FingerprintError
from protocl.heads.base import Head
from protocl.heads.written_settings import plain, restored
from protocl.io.atomic import atomic_folder
from protocl.io.names import MODEL_FOLDER
from protocl.memory import PrototypeMemory
from protocl.memory import file as memory_file
from protocl.model.answers import Answer, Answering
from protocl.model.encoder import Encoder
from protocl.model.kept_backbone import KeptBackbone, of_a_sample
from protocl.model.labels import Labels
from protocl.model.trained import TrainedClassifier
from protocl.registry import ANSWERS, HEADS, Registry

if TYPE_CHECKING:
    from protocl.model.classifier import PrototypeClassifier

Model: TypeAlias = "PrototypeClassifier | TrainedClassifier"
FORMAT = "protocl-model"
FORMAT_VERSION = 1
DESCRIPTION = "model.json"
MEMORY = "memory.safetensors"
ANSWER = "answer.safetensors"
_LABELS = "labels"


class Named(BaseModel):
    """A registered part and its settings."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str
    settings: dict[str, Any]


class Description(BaseModel):
    """The content of ``model.json``.

    Attributes:
        head: what answers from the memory; None beside an ``answer``.
        answer: what answers without one.
        backbone: None where samples are features.
        shape: of one sample, ``(C, H, W)`` or ``(D,)``; None where samples are features.
        batch_size: of the encoder.
        versions: of what wrote it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["protocl-model"] = "protocl-model"
    format_version: Literal[1] = 1
    head: Named | None = None
    answer: Named | None = None
    backbone: KeptBackbone | None = None
    shape: Annotated[list[PositiveInt], AfterValidator(of_a_sample)] | None = None
    batch_size: PositiveInt | None = None
    versions: dict[str, str]


class Parts(NamedTuple):
    """What a model is made of, whoever uses it.

    Attributes:
        answering: the head and its memory, or trained parameters.
        labels: ``(C,)`` of the classes, in the order of ids or of the answer's columns.
        encoder: of samples; None where they are features.
    """

    answering: Answering
    labels: Labels
    encoder: Encoder | None


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a classifier to a folder, so that :func:`load_model` gives the same answers.

    Args:
        model: fitted.
        path: the folder; made if absent. Of a model of the same kind that is there, what it knows
            is replaced.

    Raises:
        ValueError: the classifier knows nothing, or has parts that a folder cannot name.
        DataError: the folder holds something else.
    """
    if isinstance(model, TrainedClassifier):
        write(Parts(model.answer, model.labels, model.encoder_), Path(path))
        return
    if not hasattr(model, "memory_"):
        raise ValueError("the classifier has not learned yet: call fit or partial_fit first")
    labels = model.classes_[np.argsort(model.ids_)]
    encoder = getattr(model, "encoder_", None)
    write(Parts((model.head_, model.memory_), labels, encoder), Path(path))


def write(parts: Parts, folder: Path) -> None:
    """Write what a model is made of: see :func:`save_model`."""
    description = describe(parts)
    if (folder / DESCRIPTION).exists() and read_description(folder) == description:
        _write_state(parts, folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} holds something else, or a model of another head or backbone; choose "
            "another folder, or remove it"
        )
    with atomic_folder(folder) as temporary:
        if parts.encoder is not None and description.backbone is not None:
            description.backbone.save(parts.encoder.backbone, temporary)
        _write_state(parts, temporary)
        content = description.model_dump(mode="json")
        content["checksum"] = _checksum(content)
        text = json.dumps(content, indent=1, allow_nan=False)
        (temporary / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


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
    folder = model_folder(path)
    found = read_description(folder)
    encoder = None
    if found.backbone is not None:
        network = found.backbone.load(folder, backbone)
        encoder = Encoder(network, found.shape, batch_size=found.batch_size)
    if found.answer is not None:
        if encoder is None:
            raise DataError(f"{folder / DESCRIPTION} is damaged: an answer without a backbone")
        return _load_answer(folder, found.answer, encoder)
    if found.head is None:
        raise DataError(f"{folder / DESCRIPTION} is damaged: neither a head nor an answer")
    return _load_memory(folder, found, encoder)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a model, given it or the run that left it."""
    inside = Path(path) / MODEL_FOLDER
    return inside if (inside / DESCRIPTION).is_file() else Path(path)


def describe(parts: Parts) -> Description:
    """What ``model.json`` says of a model."""
    answering, encoder, head, answer = parts.answering, parts.encoder, None, None
    if isinstance(answering, tuple):
        head = _named(HEADS, answering[0], answering[0].get_params())
    else:
        answer = _named(ANSWERS, answering, answering.arguments)
    return Description(
        head=head,
        answer=answer,
        backbone=None if encoder is None else KeptBackbone.of(encoder.backbone),
        shape=None if encoder is None or encoder.shape is None else list(encoder.shape),
        batch_size=None if encoder is None else encoder.batch_size,
        versions={"protocl": __version__, "torch": torch.__version__},
    )


def read_description(folder: Path) -> Description:
    """The content of ``model.json``.

    Raises:
        DataError: the folder is no model, or damaged.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise DataError(f"{folder} is no model: it has no {DESCRIPTION}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; restore it from a copy") from error
    version = content.get("format_version")
    if content.get("format") != FORMAT or version != FORMAT_VERSION:
        raise DataError(
            f"{file} has format {content.get('format')!r} {version!r}, this protocl reads "
            f"{FORMAT!r} {FORMAT_VERSION}; upgrade protocl"
        )
    if checksum != _checksum(content):
        raise DataError(f"{file} is damaged: its checksum is not that of its contents")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{file} is damaged: {error}") from error


def _write_state(parts: Parts, folder: Path) -> None:
    labels = {_LABELS: json.dumps(parts.labels.tolist())}
    if not isinstance(parts.answering, tuple):
        memory_file.write(folder / ANSWER, labels, parts.answering.state_dict(), kind=FORMAT)
        return
    _, memory = parts.answering
    description = memory_file.description_of(memory) | labels
    memory_file.write(folder / MEMORY, description, memory_file.arrays_of(memory))


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


def _load_memory(folder: Path, found: Description, encoder: Encoder | None) -> PrototypeClassifier:
    from protocl.model.classifier import PrototypeClassifier

    memory, labels = read_memory(folder)
    assert found.head is not None
    head: Head = _made(HEADS, found.head, folder)
    _require_partners(folder, found, head, memory)
    if encoder is not None and encoder.backbone.feature_dim != memory.feature_dim:
        raise FingerprintError(
            f"{folder / MEMORY} holds {memory.feature_dim} features and its backbone gives "
            f"{encoder.backbone.feature_dim}: it belongs to another model"
        )
    return PrototypeClassifier(
        head,
        backbone=None if encoder is None else encoder.backbone,
        forgettable=memory.level != "shared",
        exact=memory.exact,
        step=memory.step,
    ).hold(memory, labels, encoder)


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


def _named(registry: Registry, part: Any, settings: dict[str, Any]) -> Named:
    name = registry.name_of(type(part))
    if name is None:
        raise ValueError(
            f"{type(part).__name__} is not registered under {registry.group}, so that a model "
            "cannot name it: declare it as an entry point of your package"
        )
    return Named(name=name, settings={key: plain(key, value) for key, value in settings.items()})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
