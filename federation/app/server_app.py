"""The ServerApp: Flower starts it once a run; a second run continues where the first one ended."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from protocl.federation.server import serve

from .task import new_memory

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Merge until ``rounds`` rounds are done."""
    serve(grid, new_memory(context.run_config), context.run_config)
