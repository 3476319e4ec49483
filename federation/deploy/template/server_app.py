"""The ServerApp: Flower starts it once a run; a second run continues where the first one ended."""

from protocl.federation.deploy.apps import server_app

from .task import new_task

app = server_app(new_task)
