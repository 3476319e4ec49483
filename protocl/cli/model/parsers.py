"""The arguments of the commands for models. They import what they need when they are called."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocl.cli.arguments import Commands

_MODEL = "folder of a model, or of the run that left one"
_PREDICT = """\
examples:
  protocl predict runs/pets-slda/20260131-120000-1 photo.jpg more/
  protocl predict MODEL *.jpg --top 5 --json > answers.jsonl
  protocl predict MODEL features.npy --csv
"""
_EXPLAIN = """\
examples:
  protocl explain MODEL photo.jpg
  protocl explain MODEL photo.jpg --beside pictures/train --top 5
  protocl explain MODEL features.npy --json
"""
_TEACH = """\
examples:
  protocl teach MODEL --class otter otter1.jpg otter2.jpg
  protocl teach MODEL pictures/            one subfolder a class
  protocl teach animals --new --backbone efficientnet_lite0 --head lda pictures/

The model is replaced as a whole: killed at any moment it is the one before or the one after.
"""
_FORGET = """\
examples:
  protocl forget MODEL --class otter                whole class, as if it had never been taught
  protocl forget MODEL --class otter --samples otter2.jpg
"""
_CALIBRATE = """\
examples:
  protocl calibrate MODEL --held-out held_out/       one subfolder a class, none of it taught
  protocl calibrate MODEL --taught pictures/         what was taught, left out in turn
  protocl calibrate MODEL --held-out held_out/ --score energy --keep 0.99
  protocl calibrate MODEL --off                      the probability again

From then on predict, explain and serve tell by the score what is unknown. A model that is taught
more says that its calibration is older; one that forgets has none until it is calibrated again.
"""


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of ``protocl``."""
    for add in (_predict, _explain, _teach, _forget, _calibrate, _merge, _export, _info):
        add(commands, common)


def _add(
    commands: Commands, common: argparse.ArgumentParser, name: str, summary: str, **more: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, parents=[common], help=summary, description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter, **more,
    )  # fmt: skip
    parser.set_defaults(command=_later(name))
    return parser


def _later(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from protocl.cli.model import actions

        command: Callable[[argparse.Namespace], int] = getattr(actions, name)
        return command(args)

    return run


def _predict(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "predict", "say what pictures show", epilog=_PREDICT)
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILES",
        help="image files, folders of them, or .npy arrays of images or features",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=1, metavar="K", help="best classes (default 1)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="one row for each of the best classes")


def _explain(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "explain", "say why pictures are answered so", epilog=_EXPLAIN)
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILES", help="as for predict")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="prototypes (default 3)")
    parser.add_argument(
        "--beside", type=Path, metavar="FILES",
        help="a folder of pictures, or an array: those most alike are named as well",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _teach(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "teach", "let a model learn from pictures", epilog=_TEACH)
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILES",
        help="as for predict; without --class a folder with one subfolder a class",
    )  # fmt: skip
    parser.add_argument("--class", dest="label", metavar="NAME", help="what all of them show")
    new = parser.add_argument_group("a new model")
    new.add_argument("--new", action="store_true", help="make MODEL, which is not there yet")
    new.add_argument("--backbone", metavar="NAME", help="default: efficientnet_lite0")
    new.add_argument("--image-size", type=int, metavar="S", help="side of images in the backbone")
    new.add_argument("--head", metavar="NAME", help="default: ridge (protocl list heads)")
    new.add_argument(
        "--forgettable", choices=("auto", "yes", "no"),
        help="keep second moments of each class, so that it can be forgotten by name "
        "(default: auto, where they take at most 200 MB)",
    )  # fmt: skip


def _forget(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(
        commands, common, "forget", "let a model be as if it had never learned", epilog=_FORGET
    )
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument("--class", dest="label", metavar="NAME", required=True, help="which")
    parser.add_argument(
        "--samples", type=Path, nargs="+", metavar="FILES",
        help="samples of the class; without any the whole class",
    )  # fmt: skip


def _calibrate(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(
        commands, common, "calibrate", "choose from which score on pictures count as unknown",
        epilog=_CALIBRATE,
    )  # fmt: skip
    add = parser.add_argument
    add("model", type=Path, help=_MODEL)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--held-out", type=Path, nargs="+", metavar="FILES",
        help="as for teach, of known classes and not taught; nothing is learned from them",
    )  # fmt: skip
    one.add_argument(
        "--taught", type=Path, nargs="+", metavar="FILES",
        help="the same of what was taught: each twentieth is left out in turn",
    )  # fmt: skip
    one.add_argument("--off", action="store_true", help="tell by the probability again")
    add("--class", dest="label", metavar="NAME", help="what all of them show")
    add("--score", metavar="NAME", help="default: the model's, or evidence (protocl list scores)")
    add(
        "--keep", type=float, metavar="SHARE",
        help="share of them that is to count as known (default 0.95)",
    )  # fmt: skip


def _merge(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "merge", "make a model that knows what several know")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help=_MODEL)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="made")


def _export(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "export", "write a model for other programs")
    parser.add_argument("model", type=Path, help=_MODEL)
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="ONNX graph")


def _info(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "info", "say what a model is and what it knows")
    parser.add_argument("model", type=Path, help=_MODEL)
