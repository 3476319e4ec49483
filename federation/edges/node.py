"""The node by which a deployed edge is a client of the root."""

from __future__ import annotations

from filelock import FileLock
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict

from protocl.federation.edges.door import sign_release
from protocl.federation.edges.files import (
    EdgeFolder,
    load_holding,
    told_above,
    tombstones_of,
)
from protocl.federation.edges.row import answer
from protocl.federation.exactly_once.server import Tombstone
from protocl.federation.wire.replies import confusion_content
from protocl.io.atomic import atomic_write
from protocl.metrics.confusion import Confusion


class EdgeNode:
    """Answers the root for an edge, with what the edge's server left in its folder.

    What it must not lose, the numbers of its rows, is beside it in ``above.json``. Without
    that file the edge is known to the root by its node, and its next row replaces all before.

    Args:
        folder: of the edge.
    """

    def __init__(self, folder: EdgeFolder) -> None:
        self.folder = folder
        self._path = folder.above

    def __call__(self, message: Message, context: Context) -> Message:
        """The answer; its clients evaluate with the edge's own memory, not with the root's."""
        if message.metadata.message_type == MessageType.EVALUATE:
            return Message(confusion_content(Confusion.empty()), reply_to=message)
        if not self.folder.row.exists():  # before the first round of the edge
            metrics = MetricRecord({"num-examples": 0})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        with FileLock(f"{self._path}.lock"):
            now, values = load_holding(self.folder.row)
            state = told_above(self._path)
            reply = answer(message, context, state, now)
            atomic_write(self._path, state.to_text())
            withdrawn = tombstones_of(values)[: state.standing.withdrawn]
            self._give_releases(withdrawn, values["edge"])
        return reply

    def _give_releases(self, withdrawn: list[Tombstone], edge: str) -> None:
        """Write the releases of clients without which the root is; of each the newest."""
        newest = {one.client: one for one in withdrawn if one.target}
        for client, tombstone in newest.items():
            signed = sign_release(tombstone.release(edge), self.folder.key)
            path = self.folder.release(client)
            if not path.exists() or path.read_text(encoding="utf-8") != signed:
                path.parent.mkdir(exist_ok=True)
                atomic_write(path, signed)
