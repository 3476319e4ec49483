"""The process that serves: its lock, its socket, and the link that it prints."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvicorn

from protocl.errors import ConfigError
from protocl.io.provenance import available_cores
from protocl.model.changes.owner import serving
from protocl.serve.app import application
from protocl.serve.service import Service
from protocl.serve.threads import Threads

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        host: address to listen at.
        port: 0 for any that is free.
        allowed_hosts: further names under which the server is reached.
        token: of those who may change the model; None for a new one.
        readers: requests that are computed at a time; None for one a core.
        undo_seconds: for how long a change can be undone.
        thumbnails: whether small pictures of what is taught are kept, and shown.
        unknown: from which on a sample is marked as unknown: see :class:`.Service`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: Sequence[str] = ()
    token: str | None = None
    readers: int | None = None
    undo_seconds: float = 600.0
    thumbnails: bool = False
    unknown: float | Literal["auto"] | None = "auto"


def serve(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """Serve a model until the process is told to stop.

    Args:
        folder: of the model.
        settings: how.
        say: is given the lines for the one who starts it.

    Raises:
        ConfigError: the model is served already, or the address cannot be listened at.
        DataError, FingerprintError: as :func:`protocl.load_model`.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(settings))
        address = _address(settings.host, listener.getsockname()[1])
        stack.enter_context(serving(folder, address))
        service = Service(
            folder, undo_seconds=settings.undo_seconds, thumbnails=settings.thumbnails,
            unknown=settings.unknown,
        )  # fmt: skip
        token = settings.token or secrets.token_urlsafe(32)
        app = application(
            service, Threads(settings.readers or available_cores()), token=token,
            hosts=hosts_of(settings),
        )  # fmt: skip
        _configure_log()
        server = uvicorn.Server(uvicorn.Config(
            app, access_log=False, server_header=False, proxy_headers=False, log_level="warning",
            timeout_graceful_shutdown=10,
        ))  # fmt: skip
        known = len(service.state.known.classes_)
        say(f"serving {folder} ({known} {'class' if known == 1 else 'classes'}); Ctrl-C stops it")
        # Whoever taught the server a token of their own has it, and logs are read by others.
        say(f"page: {address}/" + ("" if settings.token else f"#token={token}"))
        if note := getattr(service.state.known, "unknown_note", ""):
            say(f"what is unknown: {note}")
        # uvicorn raises the signal again when it has stopped; by default that ends the process
        # before the note that the model is served is taken away.
        signal.signal(signal.SIGTERM, _stop)
        server.run(sockets=[listener])


def hosts_of(settings: Settings) -> list[str]:
    """Names under which the server may be asked.

    Raises:
        ConfigError: it listens everywhere, and none is told.
    """
    if settings.host in _EVERYWHERE and not settings.allowed_hosts:
        raise ConfigError(
            f"--host {settings.host} listens on every network: name what the server is called "
            "there with --allow-host NAME, so that no other name leads to it"
        )
    own = [] if settings.host in _EVERYWHERE else [settings.host]
    return [*LOOPBACK, *own, *settings.allowed_hosts]


def _listener(settings: Settings) -> socket.socket:
    hosts_of(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {settings.host} port {settings.port}: {error}; choose another with "
            "--port, or 0 for any that is free"
        ) from error
    return listener


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)


def _address(host: str, port: int) -> str:
    shown = "127.0.0.1" if host in _EVERYWHERE else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _configure_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("protocl")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
