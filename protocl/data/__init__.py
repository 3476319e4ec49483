"""Data sets as tensors in memory, and class-incremental streams over them.

:func:`load_data` turns a :class:`BenchmarkConfig` into :class:`ArrayData`; :func:`class_stream` and
:func:`build_benchmark` turn that into a stream, the latter as an Avalanche benchmark.
Importing this package does not import Avalanche.
"""

from protocl.data.arrays import ArrayData, TensorData, as_images
from protocl.data.config import BenchmarkConfig, load_data
from protocl.data.experiences import ClassStream, Unlabelled
from protocl.data.streams import (
    build_benchmark,
    class_order,
    class_stream,
    experience_sizes,
    hold_out,
)

__all__ = [
    "ArrayData",
    "BenchmarkConfig",
    "ClassStream",
    "TensorData",
    "Unlabelled",
    "as_images",
    "build_benchmark",
    "class_order",
    "class_stream",
    "experience_sizes",
    "hold_out",
    "load_data",
]
