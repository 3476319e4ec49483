"""The ClientApp: Flower starts it for every message."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from protocl.federation import PrototypeClient
from protocl.federation.client_state import StatesOnDisk

from .task import load, new_head, new_memory

app = ClientApp()


def client(context: Context) -> PrototypeClient:
    """The client that this node is; its state is in a folder that outlives its processes."""
    config = context.run_config
    folder = context.node_config.get("state", config["client-state"])
    return PrototypeClient(
        load,
        new_memory(config),
        states=StatesOnDisk(Path(str(folder))),
        head=new_head(config),
        precision=str(config["precision"]),  # type: ignore[arg-type]
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Count what arrived, send what is not acknowledged."""
    return client(context).train(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Classify the node's test data with the merged memory."""
    return client(context).evaluate(message, context)
