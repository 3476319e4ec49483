"""What the commands for models do."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocl.cli.model.reasons import show_explanations
from protocl.cli.model.samples import batches
from protocl.cli.model.show import describe, note, unknown_by, writer
from protocl.data.folder import classes_in
from protocl.errors import ConfigError, DataError, ProtoclError, as_config_error
from protocl.model.changes.change import of_features
from protocl.model.changes.owner import alone
from protocl.model.changes.thumbnails import Thumbnails
from protocl.model.classifier import PrototypeClassifier
from protocl.model.description import DESCRIPTION
from protocl.model.folder import Model, load_model, model_folder, save_model
from protocl.model.labels import ids_beside, named
from protocl.model.unknown.kept import write_unknown
from protocl.open_world.calibration import KEEP

SCORE = "evidence"
"""Tells what is unknown where ``protocl calibrate`` is asked for no other score."""
_WAYS: dict[str | None, Any] = {None: "auto", "auto": "auto", "yes": True, "no": False}


def predict(args: argparse.Namespace) -> int:
    """Print what the files show; 3 if some could not be read."""
    model = load_model(args.model)
    unread: list[DataError] = []
    write = writer(args, model)
    for names, samples in batches(args.files, unread.append):
        with _as_our_errors():
            write(names, model.guesses(samples, args.top))
    write.finish()
    _complain(unread)
    return 3 if unread else 0


def explain(args: argparse.Namespace) -> int:
    """Print why the files are answered so; 3 if some could not be read."""
    model = _explaining(args.model)
    stored, labels = _stored(args.beside, model)
    unread: list[DataError] = []
    for names, samples in batches(args.files, unread.append):
        with _as_our_errors():
            found = model.explain(samples, args.top, stored=stored, labels=labels)
        show_explanations(names, found, as_json=args.json)
    if not args.json:
        _warn(note(model))
    _complain(unread)
    return 3 if unread else 0


def teach(args: argparse.Namespace) -> int:
    """Let a model learn from the files, all of them or none."""
    _require_new(args)
    folder = args.model if args.new else model_folder(args.model)
    with alone(folder):
        model = _new(args, folder) if args.new else _learning(folder)
        before = 0 if args.new else model.memory_.total
        with _as_our_errors():
            lessons = [
                (_label(model, name), files) for name, files in _lessons(args.files, args.label)
            ]
            labels = [label for label, _ in lessons]
            for label, files in lessons:
                for _, samples in batches(files, _refuse):
                    model.partial_fit(samples, [label] * len(samples), classes=labels)
        save_model(model, folder)
    _print(f"{folder}: {model.memory_.total - before} samples more; {describe(model)}")
    _warn(note(model))
    return 0


def forget(args: argparse.Namespace) -> int:
    """Take a class, or samples of it, out of a model."""
    folder = model_folder(args.model)
    with alone(folder):
        model = _learning(folder)
        before, label = model.memory_.total, _label(model, args.label)
        (class_id,) = ids_beside(np.array([label]), model.classes_, model.ids_)
        with _as_our_errors():
            if args.samples:
                for _, samples in batches(args.samples, _refuse):
                    model.forget(samples, [label] * len(samples))
            else:
                model.forget(classes=[label])
        save_model(model, folder)
        Thumbnails(folder).forget(class_id)
    _print(f"{folder}: {before - model.memory_.total} samples less; {describe(model)}")
    _warn(note(model))
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """Find from which score on samples count as unknown, or go back to the probability."""
    if args.off and (args.score, args.keep, args.label) != (None, None, None):
        raise ConfigError("--off takes no other options: leave out --score, --keep and --class")
    folder = model_folder(args.model)
    with alone(folder):
        model = _learning(folder)
        if args.off:
            model.unknown_score = model.calibration_ = None
        else:
            model.unknown_score = args.score or model.unknown_score or SCORE
            with _as_our_errors(), _warnings_as_lines():
                features, labels = _held_out(args, model)
                known = of_features(model)
                keep = KEEP if args.keep is None else args.keep
                taught = args.taught is not None
                known.calibrate_unknown(features, labels, keep=keep, taught=taught)
            model.calibration_ = known.calibration_
        write_unknown(folder, model.unknown_score, model.calibration_)
    _print(f"{folder}: unknown by {unknown_by(model)}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Write a model that knows what all of ``args.models`` know."""
    output = model_folder(args.output)
    there = (output / DESCRIPTION).exists()
    if there and not any(output.samefile(model_folder(path)) for path in args.models):
        raise ConfigError(
            f"-o {args.output} is a model already, and none of those that are merged: choose "
            "another folder, or name it among them"
        )
    first, *others = [_learning(model_folder(path)) for path in args.models]
    pairs = zip(args.models[1:], others, strict=True)
    lost = [path for path, other in pairs if other.unknown_score]
    with _as_our_errors():
        for other in others:
            first.merge(other)
        save_model(first, args.output)
    _print(f"{args.output}: {describe(first)}")
    for path in lost:
        _warn(f"what counts as unknown is not merged: that of {path} is left out")
    _warn(note(first))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a model as an ONNX graph."""
    from protocl.model.graph import export_model

    export_model(load_model(args.model), args.onnx)
    _print(f"wrote {args.onnx}")
    return 0


def info(args: argparse.Namespace) -> int:
    """Say what a model is."""
    from protocl.cli.model.show import show_info

    folder = model_folder(args.model)
    show_info(load_model(folder), folder)
    return 0


def _held_out(
    args: argparse.Namespace, model: PrototypeClassifier
) -> tuple[NDArray[Any], list[Any]]:
    """Features ``(N, D)`` of the files, and their labels."""
    features, labels = [], []
    for name, files in _lessons(args.taught or args.held_out, args.label):
        label = _label(model, name)
        for _, samples in batches(files, _refuse):
            encoder = getattr(model, "encoder_", None)
            features.append(samples if encoder is None else encoder(samples).numpy())
            labels += [label] * len(samples)
    if not labels:
        raise DataError("there is no sample in these files, by which to calibrate")
    return np.concatenate(features), labels


def _require_new(args: argparse.Namespace) -> None:
    for option in ("backbone", "image_size", "head", "forgettable"):
        if not args.new and getattr(args, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for a new model, and {args.model} is there: "
                "leave it out, or make another with --new"
            )


def _new(args: argparse.Namespace, folder: Path) -> PrototypeClassifier:
    from protocl.backbones import BackboneConfig

    if (folder / DESCRIPTION).exists():
        raise ConfigError(f"--new: {folder} is a model already; teach it without --new")
    config = BackboneConfig(name=args.backbone or "efficientnet_lite0", image_size=args.image_size)
    return PrototypeClassifier(
        args.head or "ridge", backbone=config, forgettable=_WAYS[args.forgettable],
        exact=True,
    )  # fmt: skip


def _learning(folder: Path) -> PrototypeClassifier:
    model: Model = load_model(folder)
    if not isinstance(model, PrototypeClassifier):
        raise ConfigError(
            f"{folder} was trained and keeps no statistics, so that it can neither be taught nor "
            "forget, nor be merged; a model of nearest_mean, slda, ridge and others can"
        )
    return model


def _explaining(folder: Path) -> PrototypeClassifier:
    model: Model = load_model(folder)
    if not isinstance(model, PrototypeClassifier):
        raise ConfigError(
            f"{folder} was trained and keeps no prototypes, so that there are none to explain by; "
            "a model of nearest_mean, slda, ridge and others keeps them"
        )
    return model


def _stored(folder: Path | None, model: PrototypeClassifier) -> tuple[Any, list[str]]:
    """Samples to show beside the prototypes, and the file of each as what it is called."""
    if folder is None:
        return None, []
    samples: list[Any] = []
    names: list[str] = []
    for called, read in batches([folder], _refuse):
        names += called
        samples += list(read)
    return (samples if model.encoder_ is not None else np.stack(samples)), names


def _label(model: PrototypeClassifier, name: str) -> Any:
    """A name on the command line as the model's labels are."""
    with as_config_error("--class "):
        return named(getattr(model, "classes_", np.empty(0)), name)


def _lessons(given: Sequence[Path], label: str | None) -> Iterator[tuple[str, list[Path]]]:
    """Classes and the files that show them."""
    if label is not None:
        yield label, list(given)
        return
    for folder in given:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is no folder: without --class NAME give a folder that has one subfolder "
                "of pictures a class"
            )
        yield from classes_in(folder).items()


def _refuse(error: DataError) -> None:
    raise error


@contextlib.contextmanager
def _as_our_errors() -> Iterator[None]:
    """Complaints of the classifier as those of the command."""
    try:
        yield
    except ProtoclError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(str(error)) from error
    except KeyError as error:
        raise DataError(str(error.args[0])) from error


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings without the place in the code."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for line in dict.fromkeys(str(each.message) for each in told):
                _warn(line)


def _complain(errors: list[DataError]) -> None:
    for error in errors:
        print(f"protocl: {error}", file=sys.stderr)  # noqa: T201


def _print(line: str) -> None:
    print(line)  # noqa: T201


def _warn(line: str) -> None:
    if line:
        print(line, file=sys.stderr)  # noqa: T201
