"""Data sets as tensors in memory, and class-incremental streams over them.

:func:`load_data` turns a :class:`BenchmarkConfig` into :class:`ArrayData`; :func:`build_benchmark`
turns that into an Avalanche benchmark. Importing this package does not import Avalanche.
"""

from protocl.data.arrays import ArrayData, TensorData, as_images
from protocl.data.config import BenchmarkConfig, load_data
from protocl.data.streams import build_benchmark, class_order, experience_sizes, hold_out

__all__ = [
    "ArrayData",
    "BenchmarkConfig",
    "TensorData",
    "as_images",
    "build_benchmark",
    "class_order",
    "experience_sizes",
    "hold_out",
    "load_data",
]
