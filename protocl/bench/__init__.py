"""Speed and memory of protocl, measured beside a peer in the same run (``protocl bench``).

A group of cases is a function from a :class:`Size` to :class:`SpeedComparison` objects, registered
under the entry-point group ``protocl.speed``. Those against Avalanche come with
``protocl.strategies``; the core measures only itself.
"""

from protocl.bench.command import add_arguments, main, run
from protocl.bench.comparison import SIZES, Size, SpeedComparison

__all__ = ["SIZES", "Size", "SpeedComparison", "add_arguments", "main", "run"]
