"""Nodes that an operator blocks: they are not asked, and what they send is not read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from protocl.errors import ConfigError, writing_to
from protocl.federation.wire.relayed_grids import GridWrapper
from protocl.federation.wire.replies import sender
from protocl.io.atomic import atomic_write

logger = logging.getLogger(__name__)


class BlockList:
    """Names of blocked nodes, in a file that a running server reads before each request.

    Args:
        folder: the server's ``output``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "blocked.json"

    def names(self) -> set[str]:
        """Those blocked now.

        Raises:
            ConfigError: the file is damaged; nobody is taken for harmless then.
        """
        if not self.path.exists():
            return set()
        try:
            names = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} is damaged: {error}; restore or delete it") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{self.path}: expected a JSON list of names of nodes")
        return set(names)

    def change(self, name: str, *, blocked: bool) -> set[str]:
        """Block a node, or lift it; all that are blocked then.

        Raises:
            ConfigError: the node to lift is not blocked, or the server's folder is not there.
            DataError: the list cannot be written.
        """
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent} is no folder; give the folder output of the run")
        names = self.names()
        if not blocked and name not in names:
            raise ConfigError(f"node={name} is not blocked; blocked are {sorted(names) or 'none'}")
        names = names | {name} if blocked else names - {name}
        if_not = "the same nodes are blocked as before; give it room, and rights to write"
        with writing_to(self.path, if_not):
            atomic_write(self.path, json.dumps(sorted(names)))
        return names


class BlockingGrid(GridWrapper):
    """A grid without the nodes of a list.

    Args:
        grid: what does the sending.
        blocked: the list.
    """

    def __init__(self, grid: Grid, blocked: BlockList) -> None:
        super().__init__(grid)
        self._blocked = blocked

    def get_node_ids(self) -> list[int]:
        """The nodes online that are not blocked."""
        blocked = self._blocked.names()
        return [node for node in super().get_node_ids() if str(node) not in blocked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Replies of nodes that were not blocked meanwhile."""
        return self._let_pass(super().send_and_receive(messages, timeout=timeout))

    def collect_late(self) -> list[Message]:
        """Late replies of nodes that are not blocked."""
        return self._let_pass(super().collect_late())

    def _let_pass(self, replies: Iterable[Message]) -> list[Message]:
        blocked, passed = self._blocked.names(), []
        for reply in replies:
            if sender(reply) in blocked:
                logger.warning("node %s is blocked: what it sent is not read", sender(reply))
            else:
                passed.append(reply)
        return passed
