"""A server in a process of its own, which can be killed."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from protocl.serve.server import Settings, serve

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["protocl.serve.server", "protocl.model.classifier"])


class Server(NamedTuple):
    """A server that runs: its link, and the process."""

    link: str
    process: Any

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def post(self, path: str, content: dict[str, Any], caller: http.client.HTTPConnection) -> int:
        """The status of a change; 0 where the connection broke."""
        token = self.link.partition("#token=")[2]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            caller.request("POST", path, json.dumps(content), headers)
            reply = caller.getresponse()
            reply.read()
            return reply.status
        except (OSError, http.client.HTTPException):
            return 0

    def caller(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection(urlsplit(self.link).netloc, timeout=60)


@contextmanager
def served(folder: Path, settings: Settings) -> Iterator[Server]:
    """A server of a model; it is stopped at the end if it still runs."""
    mine, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(folder, settings, its), daemon=True)
    process.start()
    its.close()
    try:
        mine.recv()
        yield Server(mine.recv().removeprefix("page: "), process)
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, settings: Settings, pipe: Any) -> None:
    serve(folder, settings, pipe.send)
