"""TensorBoard's event files, in the folder of the run."""

from __future__ import annotations

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from protocl.trackers.base import Place, Tracker


class TensorBoard(Tracker):
    """Event files that TensorBoard shows, in the folder of the run."""

    def __init__(self, place: Place) -> None:
        self.writer = SummaryWriter(str(place.folder))

    def log(self, name: str, value: float, step: int) -> None:
        """See :meth:`.Tracker.log`."""
        self.writer.add_scalar(name, value, step)

    def go_on(self, step: int) -> None:
        """Have TensorBoard hide what earlier files in the folder say of ``step`` and later."""
        if step:
            writer = self.writer._get_file_writer()
            # What SummaryWriter(purge_step=step) writes, for a file that is open already.
            writer.add_event(Event(step=step, file_version="brain.Event:2"))
            writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def flush(self) -> None:
        """See :meth:`.Tracker.flush`."""
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        """End the event file."""
        self.writer.close()
