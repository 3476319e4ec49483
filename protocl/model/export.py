"""Networks as graphs that run without this library: ``torch.export`` and ONNX."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protocl import __version__
from protocl.backbones.base import Backbone
from protocl.backbones.features import frozen
from protocl.errors import CapacityError, ConfigError, DataError, ExportError
from protocl.io.atomic import atomic_path
from protocl.memory.batch import require_tensor
from protocl.memory.precision import without_autocast
from protocl.model.network import Network

_LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file takes: its format ends at 2 GiB."""

_ANY_NUMBER = ({0: torch.export.Dim("batch")},)
"""The first dimension of the one input is free."""


class _Graph(nn.Module):
    """What is exported of a network."""

    def __init__(self, network: Network, answers: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network = network
        self.answers = answers

    def forward(self, samples: Tensor) -> Any:
        return self.answers(samples)


def export_program(
    network: Network, example: Tensor, *, probabilities: bool = False
) -> torch.export.ExportedProgram:
    """The graph of a network, for any number of samples.

    The graph has weights of its own: what is learned later does not change it. It cannot refuse
    samples: for those that the network refuses (NaN, infinite, out of range) its logits are NaN.

    Args:
        network: in the precision and on the device for which the graph is made.
        example: one sample or more, ``(N, ...)``, of the type and shape that the graph will take.
        probabilities: give calibrated probabilities ``(N, C)`` float64 as a second output.

    Raises:
        ConfigError: the example holds no sample.
        ExportError: head or backbone do what a graph cannot hold; it says which.
        NotFittedError: probabilities are asked for, and the head is not calibrated.
        TypeError, ValueError: the network refuses the example.
    """
    program = _program(deepcopy(network), example, probabilities)
    # Heads write products to given tensors, which gradients of a backbone's weights do not pass.
    with without_autocast(example.device.type):
        return program.run_decompositions({})


def export_onnx(
    network: Network,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    probabilities: bool = False,
) -> Path:
    """Write the graph of :func:`export_program` as an ONNX file, whole or not at all.

    Its input is called ``images`` or ``features``, its outputs ``logits`` and ``probabilities``.
    Its metadata holds, each as JSON, ``classes`` (ids), ``class_names``, ``head``,
    ``preprocessing`` (what the graph itself does to its input), ``input`` (type and shape) and
    ``versions``.

    Args:
        network, example, probabilities: as for :func:`export_program`.
        path: file to write; missing folders are created.

    Returns:
        The path.

    Raises:
        DataError: the extra ``export`` is not installed.
        CapacityError: the weights are too large for one ONNX file.
        ConfigError, ExportError, NotFittedError, TypeError, ValueError: as
            :func:`export_program`; or ``path`` is a folder.
    """
    for library in ("onnx", "onnxscript"):
        imported(library)
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a file, such as model.onnx")
    if any(part.precision != "float32" for part in network.parts()):
        raise ConfigError(
            "the backbone computes in bfloat16, which runtimes of ONNX do not: build it with "
            "backbone.precision=float32"
        )
    onnx = _converted(_program(network, example, probabilities), example, probabilities)
    size = _nbytes(onnx)
    if size > _LARGEST:
        raise CapacityError(
            f"the weights take {size / 2**30:.1f} GiB and an ONNX file at most 2: choose a head "
            "that keeps less, such as mahalanobis with covariance='low_rank' or 'shared', or use "
            "export_program"
        )
    onnx.model.metadata_props.update(_metadata(network, example))
    with atomic_path(path) as temporary:
        onnx.save(temporary, external_data=False)
    return path


def largest_difference(network: Network, samples: Tensor, path: str | os.PathLike[str]) -> float:
    """How far onnxruntime's logits are from the network's, as a share of the largest logit.

    Args:
        network: what was exported.
        samples: ``(N, ...)`` on the CPU, ``N >= 1``.
        path: the ONNX file.

    Raises:
        DataError: the extra ``export`` is not installed.
    """
    runtime = imported("onnxruntime")
    session = runtime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    with frozen(network):
        expected = network(samples).double()
    found = torch.from_numpy(session.run(["logits"], {name: samples.numpy()})[0]).double()
    return float((found - expected).abs().max() / expected.abs().max())


def imported(library: str) -> Any:
    """A library of the extra ``export``.

    Raises:
        DataError: it is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise DataError(
            f"an ONNX file needs {library}, which is not installed: pip install 'protocl[export]'"
        ) from error


def _program(
    network: Network, example: Tensor, probabilities: bool
) -> torch.export.ExportedProgram:
    require_tensor("example", example)
    if not example.ndim or not len(example):
        raise ConfigError(
            f"the example has shape {tuple(example.shape)}: expected one sample or more, (N, ...)"
        )
    answers = network.with_probabilities if probabilities else network.forward
    with frozen(network), without_autocast(example.device.type):
        answers(example[:1])  # what the network refuses is refused in its own words
        # An example of one would be taken for a graph of one.
        pair = example[:1].repeat(2, *[1] * (example.ndim - 1))
        try:
            return _traced(_Graph(network, answers), pair)
        except Exception as error:
            part = _culprit(network, pair)
            raise ExportError(
                f"{part} cannot be exported: {_first_line(error)}; a graph holds operations on "
                "tensors alone, so write it without values as Python numbers (float(x), x.item(), "
                "if x.max() > ...) and without loops over the samples or len(x): x.shape[0]"
            ) from error


def _traced(module: nn.Module, samples: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (samples,), dynamic_shapes=_ANY_NUMBER, strict=False)


def _culprit(network: Network, samples: Tensor) -> str:
    """The part that cannot be exported, by trying the head alone."""
    head = network.head
    try:
        _traced(head, network.backbone(network.normalised(samples)))
    except Exception:
        return f"the head {type(head).__name__}"
    return f"the backbone {_name_of(network.backbone)}"


def _name_of(backbone: nn.Module) -> str:
    return backbone.architecture if isinstance(backbone, Backbone) else type(backbone).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _converted(
    program: torch.export.ExportedProgram, example: Tensor, probabilities: bool
) -> torch.onnx.ONNXProgram:
    with without_autocast(example.device.type):
        found = torch.onnx.export(
            program,
            input_names=["images" if example.ndim == 4 else "features"],
            output_names=["logits", "probabilities"] if probabilities else ["logits"],
            dynamic_shapes=_ANY_NUMBER,
            dynamo=True,
            verbose=False,
        )
    assert found is not None  # None belongs to the former exporter
    return found


def _nbytes(onnx: torch.onnx.ONNXProgram) -> int:
    weights = (value.const_value for value in onnx.model.graph.initializers.values())
    return sum(weight.nbytes for weight in weights if weight is not None)


def _metadata(network: Network, example: Tensor) -> dict[str, str]:
    facts = {
        "classes": network.classes,
        "class_names": network.class_names,
        "head": type(network.head).__name__,
        "preprocessing": network.preprocessing(),
        "input": {
            "type": str(example.dtype).removeprefix("torch."),
            "shape": ["batch", *example.shape[1:]],
        },
        "versions": {"protocl": __version__, "torch": torch.__version__},
    }
    return {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}
