"""How guesses and models are shown: a table for people, JSON lines or CSV for programs."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from protocl.backbones.base import Backbone
from protocl.cli.tables import plain_table
from protocl.memory import PrototypeMemory
from protocl.model.classifier import PrototypeClassifier
from protocl.model.folder import Model
from protocl.model.guesses import Guesses
from protocl.open_world.calibration import Verdict
from protocl.open_world.explanation.explanation import Explanation

_SHOWN = 12
"""Classes that are named in one line."""


def writer(args: argparse.Namespace, model: Model) -> Writer:
    """What ``args`` ask for."""
    if args.json:
        return JsonLines()
    return Csv(model) if args.csv else Lines(model)


class Writer:
    """Takes guesses as they come."""

    def __call__(self, names: list[str], found: list[Guesses]) -> None:
        """Write the guesses of some samples."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what remains."""


class JsonLines(Writer):
    """One object a sample."""

    def __call__(self, names: list[str], found: list[Guesses]) -> None:
        for name, guesses in zip(names, found, strict=True):
            best = [guess._asdict() for guess in guesses.best]
            line = {"file": name, "label": best[0]["label"], "unknown": guesses.unknown}
            if guesses.verdict is not None:
                line["unknown_by"] = guesses.verdict._asdict()
            print(json.dumps(line | {"best": best}, ensure_ascii=False))  # noqa: T201


class Csv(Writer):
    """One row for each of a sample's best classes."""

    def __init__(self, model: Model) -> None:
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        by_score = getattr(model, "unknown_score", None) is not None
        more = [f"unknown_by_{field}" for field in Verdict._fields] if by_score else []
        self._rows.writerow(["file", "rank", "label", "score", "probability", "unknown", *more])

    def __call__(self, names: list[str], found: list[Guesses]) -> None:
        for name, guesses in zip(names, found, strict=True):
            for rank, guess in enumerate(guesses.best, start=1):
                self._rows.writerow([name, rank, *guess, guesses.unknown, *(guesses.verdict or ())])


class Lines(Writer):
    """One line a sample, for people."""

    def __init__(self, model: Model) -> None:
        self._unsure = not (isinstance(model, PrototypeClassifier) and model.says_how_sure)
        self._note = note(model)

    def __call__(self, names: list[str], found: list[Guesses]) -> None:
        width = max(map(len, names))
        for name, guesses in zip(names, found, strict=True):
            best = "  ".join(
                f"{guess.label} "
                + (f"({guess.score:.3g})" if guess.probability is None
                   else f"{100 * guess.probability:.1f} %")
                for guess in guesses.best
            )  # fmt: skip
            odd = oddness(guesses)
            print(f"{name:{width}}  {best}" + (f"   {odd}" if odd else ""))  # noqa: T201

    def finish(self) -> None:
        """Say what numbers in brackets are, and what is wrong with the calibration."""
        if self._unsure:
            print("(scores: this model keeps nothing to say how sure it is)", file=sys.stderr)  # noqa: T201
        if self._note:
            print(f"({self._note})", file=sys.stderr)  # noqa: T201


def oddness(found: Guesses | Explanation) -> str:
    """How unknown a sample is, in words; empty where nothing tells."""
    verdict = found.verdict
    if found.unknown is None:
        return ""
    if verdict is None:
        return f"unknown {100 * found.unknown:.0f} %"
    word = "unknown" if verdict.is_unknown else "known"
    share = f"{100 * found.unknown:.0f} % of known samples score higher"
    return f"{word} by {verdict.score} ({share})"


def note(model: Model) -> str:
    """What is wrong with the calibration of a model's score of unknown inputs; often empty."""
    if not isinstance(model, PrototypeClassifier) or not model.unknown_note:
        return ""
    return f"unknown by {model.unknown_score}: {model.unknown_note}"


def describe(model: Model) -> str:
    """What a model knows, in a line."""
    names = [str(label) for label in model.classes_]
    some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} classes: {some}" if len(names) != 1 else f"1 class: {some}"


def show_info(model: Model, folder: Path) -> None:
    """Print what a model is, and its classes."""
    from rich.console import Console

    console = Console()
    table = plain_table(str(folder))
    table.show_header = False
    for name, text in _facts(model, folder).items():
        table.add_row(name, text)
    console.print(table)
    if isinstance(model, PrototypeClassifier):
        classes = plain_table("classes")
        classes.add_column("class")
        classes.add_column("samples", justify="right")
        counts = dict(
            zip(model.memory_.classes.tolist(), model.memory_.counts.tolist(), strict=True)
        )
        for label, class_id in zip(model.classes_.tolist(), model.ids_.tolist(), strict=True):
            classes.add_row(str(label), f"{counts[class_id]:,}")
        console.print(classes)


def _facts(model: Model, folder: Path) -> dict[str, str]:
    encoder = getattr(model, "encoder_", None)
    backbone: Backbone | None = None if encoder is None else encoder.backbone
    facts = {"features": "given" if backbone is None else backbone.describe()}
    if encoder is not None and encoder.shape is not None:
        facts["samples"] = " x ".join(map(str, encoder.shape))
    if isinstance(model, PrototypeClassifier):
        memory = model.memory_
        facts["head"] = repr(model.head_)
        sums = f"in fixed point, step {memory.step:g}" if memory.exact else "in floating point"
        sums += f"; an estimate ({memory.estimated})" if memory.estimated else ""
        facts["statistics"] = f"level {memory.level}, {memory.total:,} samples, {sums}"
        facts["forgets"] = _forgettable(memory)
        facts["says how sure"] = "yes" if model.says_how_sure else "no"
        facts["unknown by"] = unknown_by(model)
    else:
        facts["answers by"] = f"{type(model.answer).__name__}, trained; it learns no more"
        facts["knows"] = describe(model)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return facts | {"on disk": f"{size / 1e6:.2f} MB"}


def _forgettable(memory: PrototypeMemory) -> str:
    if memory.estimated or memory.ordered:
        return "nothing"
    return "samples" if memory.level == "shared" else "samples and whole classes"


def unknown_by(model: PrototypeClassifier) -> str:
    """What tells unknown samples, and with which calibration."""
    if model.unknown_score is None:
        return "the probability of one class more"
    words, calibration = [model.unknown_score], model.calibration_
    if calibration is not None:
        samples = calibration.histogram.samples
        words.append(f"keeps {100 * calibration.keep:g} % of {samples:,} known samples")
    return "; ".join(filter(None, [*words, model.unknown_note]))
