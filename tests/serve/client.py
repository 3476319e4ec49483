"""A served model in this process, and someone who asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from protocl.serve.app import application
from protocl.serve.service import Service
from protocl.serve.threads import Threads

TOKEN = "a token of these tests"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def asking(folder: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of the model in ``folder``."""
    service = Service(folder, **settings)
    app = application(service, Threads(2), token=TOKEN, hosts=["localhost"])
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def teach(client: TestClient, label: Any, features: Any) -> Any:
    """The answer of teaching vectors."""
    content = json.dumps({"class": label, "features": features})
    headers = ALLOWED | {"Content-Type": "application/json"}
    return client.post("/teach", content=content, headers=headers)


def forget(client: TestClient, label: Any, **more: Any) -> Any:
    """The answer of forgetting."""
    return client.post("/forget", json={"class": label, **more}, headers=ALLOWED)


def labels(client: TestClient) -> list[Any]:
    """The classes that are known."""
    return [each["label"] for each in client.get("/classes").json()["classes"]]
