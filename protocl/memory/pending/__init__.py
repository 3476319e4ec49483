"""Updates of a memory on an accelerator, for which the host does not wait."""

from protocl.memory.pending.updates import PendingUpdates

__all__ = ["PendingUpdates"]
