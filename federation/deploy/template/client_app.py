"""The ClientApp: Flower starts it for every message."""

from protocl.federation.deploy.apps import client_app

from .task import new_task

app = client_app(new_task)
