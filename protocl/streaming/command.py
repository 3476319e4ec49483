"""The command ``protocl stream``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from protocl.cli.arguments import Commands
from protocl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from protocl.streaming.settings import StreamConfig

_EXAMPLES = """\
examples:
  protocl stream birds shards/*.tar --backbone efficientnet_lite0 --workers 4
  protocl stream faces embeddings/ --head lda --label person        Parquet files below a folder
  protocl stream pets hf:FOLDER@train --on-error skip
  protocl stream birds shards/*.tar --workers 4 --resume            after an interruption
  protocl stream half shards/*.tar --part 1/2                       then: protocl merge -o all A B

MODEL is written when all has been read, as a whole; until then progress lies in MODEL.streaming/,
and a process that is killed at any moment is continued by --resume, each sample counted once.
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``stream`` to the parser of ``protocl``."""
    parser = commands.add_parser(
        "stream", parents=[common], help="make a model of data that do not fit in memory",
        description="Make a model of data that do not fit in memory.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path, help="folder of the model to be made")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCES",
        help=".tar files as WebDataset has them, .parquet files, folders of both, or hf:NAME "
        "(hf:PATH, hf:NAME@SPLIT) of what the library datasets streams",
    )  # fmt: skip
    _add_model(parser)
    _add_fields(parser)
    _add_running(parser)
    parser.set_defaults(command=_run)


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--backbone", metavar="NAME", help="default: efficientnet_lite0 of pictures")
    group.add_argument("--checkpoint", metavar="FILE", help="weights of the backbone, or a run")
    group.add_argument("--image-size", type=int, metavar="S", help="side of images in the backbone")
    group.add_argument("--precision", choices=("float32", "bfloat16"), help="of the backbone")
    group.add_argument("--head", default="ridge", metavar="NAME", help="default: ridge")
    group.add_argument(
        "--forgettable", choices=("yes", "no"), default="no",
        help="keep second moments of each class, so that it can be forgotten by name (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--step", type=float, default=2.0**-16, metavar="X",
        help="features are rounded to multiples of it (default: 2^-16)",
    )  # fmt: skip


def _add_fields(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the data, where their names do not say")
    group.add_argument(
        "--label", metavar="NAME", help="column of classes; ending of their files, or json.KEY"
    )
    group.add_argument("--sample", metavar="NAME", help="column of pictures; ending of their files")
    group.add_argument("--image", dest="sample", metavar="NAME", help="the same")
    group.add_argument("--features", metavar="A,B", help="columns of numbers")
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of the classes 0, 1, ..., one a line"
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the pass")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    group.add_argument(
        "--compile", choices=("no", "yes", "graphs"), default="no",
        help="compile the backbone; with CUDA graphs (default: no)",
    )  # fmt: skip
    group.add_argument("--batch-size", type=int, metavar="N", help="samples a forward pass")
    group.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop",
        help="at what cannot be read: stop, or skip it and count (default: stop)",
    )  # fmt: skip
    group.add_argument("--part", default="1/1", metavar="I/N", help="only each N-th shard")
    group.add_argument("--resume", action="store_true", help="continue what was interrupted")
    group.add_argument(
        "--save-every", type=float, default=60.0, metavar="SECONDS", help="default: 60"
    )


def _run(args: argparse.Namespace) -> int:
    from protocl.streaming.run import stream

    done = stream(args.sources, args.model, _config(args))
    kinds = [f"{count} x {kind}" for kind, count in sorted(done.skipped.items())]
    left_out = f"; left out: {', '.join(kinds)} (stream.json names them)" if kinds else ""
    classes = len(done.labels)
    print(f"{args.model}: {done.samples} samples of {classes} classes{left_out}")  # noqa: T201
    return 0


def _config(args: argparse.Namespace) -> StreamConfig:
    from protocl.backbones import BackboneConfig
    from protocl.data.shards.sources import Fields
    from protocl.streaming.settings import StreamConfig

    settings = {n: getattr(args, n) for n in ("checkpoint", "image_size", "precision")}
    given = {name: value for name, value in settings.items() if value is not None}
    if given and args.backbone is None:
        option = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{option} is of a backbone: name it with --backbone")
    backbone = None if args.backbone is None else BackboneConfig(name=args.backbone, **given)
    features = None if args.features is None else tuple(args.features.split(","))
    return StreamConfig(
        backbone=backbone,
        head=args.head,
        forgettable=args.forgettable == "yes",
        step=args.step,
        fields=Fields(args.sample, args.label, features),
        classes=None if args.classes is None else _classes(args.classes),
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        compiled=args.compile,
        on_error=args.on_error,
        part=_part(args.part),
        resume=args.resume,
        save_every=args.save_every,
    )


def _part(text: str) -> tuple[int, int]:
    place, _, parts = text.partition("/")
    if not (place.isdecimal() and parts.isdecimal()):
        raise ConfigError(f"--part {text}: expected I/N, such as 2/4")
    return int(place), int(parts)


def _classes(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {file} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())
