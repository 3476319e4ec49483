"""The command ``protocl serve``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from protocl.cli.arguments import Commands
from protocl.errors import ConfigError, DataError

_EXAMPLES = """\
examples:
  protocl serve animals                        a page at http://127.0.0.1:8000
  protocl serve animals --thumbnails --unknown 0.8
  protocl serve animals --port 0 --token-file TOKEN

Who has the link that is printed may teach and forget; without its token anybody may ask. More in
docs/serving.md.
"""
_LEAST_TOKEN = 16


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    summary = "answer, learn and forget over HTTP, with a page"
    parser = commands.add_parser(
        "serve", parents=[common], help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("model", type=Path, help="folder of a model, or of the run that left one")
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    add("--port", type=int, default=8000, help="default 8000; 0 for any that is free")
    add(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="another name under which the server is reached, as behind a proxy",
    )  # fmt: skip
    add(
        "--token-file", type=Path, metavar="FILE",
        help="file with the token for changes (default: a new one at each start, printed)",
    )  # fmt: skip
    add(
        "--unknown", type=_threshold, default="auto", metavar="P",
        help="mark samples that are unknown by at least this much, or off (default auto: a "
        "probability of 0.5, or what protocl calibrate was asked to keep)",
    )  # fmt: skip
    add("--undo", type=float, default=10.0, metavar="MINUTES", help="default 10")
    add("--thumbnails", action="store_true", help="keep and show small pictures of what is taught")
    add(
        "--readers", type=int, metavar="N",
        help="requests that are computed at a time (default: one for each core)",
    )  # fmt: skip
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Serve a model until the process is told to stop.

    Raises:
        ConfigError, DataError: see :func:`protocl.serve.server.serve`; or the extra is not
            installed.
    """
    try:
        from protocl.serve.server import Settings, serve
    except ImportError as error:
        raise DataError(
            f"protocl serve needs {error.name}, which is not installed: "
            "pip install 'protocl[serve]'"
        ) from error
    from protocl.model.folder import model_folder

    fewest = 1 if args.readers is None else args.readers
    if not 0 <= args.port < 2**16 or not 0 <= args.undo <= 10_000 or fewest < 1:
        raise ConfigError(
            f"--port {args.port} --undo {args.undo} --readers {args.readers}: expected a port "
            "below 65536, 0 to 10000 minutes, and at least one reader"
        )
    settings = Settings(
        host=args.host, port=args.port, allowed_hosts=args.allow_host, token=_token(args),
        readers=args.readers, undo_seconds=60 * args.undo, thumbnails=args.thumbnails,
        unknown=args.unknown,
    )  # fmt: skip
    serve(model_folder(args.model), settings, _say)
    return 0


def _token(args: argparse.Namespace) -> str | None:
    """The token in the file that was given.

    Raises:
        ConfigError: it cannot be read, or anybody could guess it.
    """
    if args.token_file is None:
        return None
    try:
        token: str = args.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {args.token_file}: {error}") from error
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"--token-file {args.token_file}: expected at least {_LEAST_TOKEN} printable ASCII "
            "characters, such as those of openssl rand -hex 32"
        )
    return token


def _threshold(text: str) -> float | Literal["auto"] | None:
    """A number from 0 to 1, ``auto`` or ``off``, as argparse asks for it."""
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number in 0..1, auto or off")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)  # noqa: T201
