"""Where the curves of a run go besides its own folder: trackers, found through entry points."""

from protocl.trackers.base import Place, Tracker
from protocl.trackers.several import Trackers, open_trackers

__all__ = ["Place", "Tracker", "Trackers", "open_trackers"]
