"""Weights in local files."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from protocl.errors import DataError
from protocl.io.atomic import atomic_path
from protocl.io.names import MODEL_FOLDER, WEIGHTS_FILE

# What the classification layer is called in our Classifier, torchvision, timm and Avalanche.
_CLASSIFICATION_LAYERS = ("classifier", "fc", "head", "linear", "_fc")
_PREFIXES = ("backbone.network.", "network.", "backbone.", "module.")


def save_weights(backbone: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of a backbone to a ``.safetensors`` file, whole or not at all."""
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary)


def load_weights(backbone: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a local file of weights into a backbone; of a run or a model its folder will do.

    The file is ``.safetensors``, or a ``state_dict`` written by ``torch.save`` (read with
    ``weights_only=True``: it cannot run code). Its names are those of the backbone or of its
    network alone, or of a whole :class:`~protocl.backbones.base.Classifier`, whose
    classification layer is left aside. Position embeddings of a timm vision transformer that was
    trained on images of another size are interpolated.

    Raises:
        DataError: the file is absent, unreadable, or its tensors are not those of the backbone.
    """
    path = _file_of(Path(path).expanduser())
    network = getattr(backbone, "network", backbone)
    expected = network.state_dict()
    state = _without_prefix(read_state(path), set(expected))
    state = {
        name: tensor
        for name, tensor in state.items()
        if name in expected or name.split(".")[0] not in _CLASSIFICATION_LAYERS
    }
    state = _resampled(state, network)
    _compare(path, state, expected)
    network.load_state_dict(state)


def has_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether a file of weights holds those of a network with BatchNorm.

    Raises:
        DataError: the file is absent, or is not a mapping from names to tensors.
    """
    names = read_state(_file_of(Path(path).expanduser()))
    return any(name.endswith("running_var") for name in names)


def _file_of(path: Path) -> Path:
    """The weights in the folder of a run or a model; any other path as it is."""
    places = (path / MODEL_FOLDER / WEIGHTS_FILE, path / WEIGHTS_FILE)
    return next((file for file in places if file.is_file()), path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name.

    Raises:
        DataError: the file is absent, or is not a mapping from names to tensors.
    """
    if not path.is_file():
        raise DataError(f"weights {path} do not exist; give a file with backbone.checkpoint=FILE")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"weights {path} cannot be read ({error}); expected a .safetensors file or a "
            "state_dict saved by torch.save"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise DataError(f"weights {path}: expected a mapping from names to tensors (a state_dict)")
    return state


def _without_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Strip the prefix under which most of the expected names are found."""

    def stripped(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    candidates = [state, *(stripped(prefix) for prefix in _PREFIXES)]
    return max(candidates, key=lambda names: len(expected & set(names)))


def _resampled(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Fit position embeddings on a square grid to the grid of a timm vision transformer."""
    given, expected = state.get("pos_embed"), getattr(network, "pos_embed", None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if given is None or expected is None or grid is None or given.shape == expected.shape:
        return state
    from timm.layers import resample_abs_pos_embed

    before = expected.shape[1] - math.prod(grid)  # tokens that have no place in the image
    if math.isqrt(given.shape[1] - before) ** 2 != given.shape[1] - before:
        return state
    fitted = resample_abs_pos_embed(given, new_size=list(grid), num_prefix_tokens=before)
    return {**state, "pos_embed": fitted}


def _compare(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = [f"lacks {name}" for name in sorted(set(expected) - set(state))]
    problems += [f"has unknown {name}" for name in sorted(set(state) - set(expected))]
    problems += [
        f"has {name} of shape {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(state) & set(expected))
        if state[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DataError(
            f"weights {path} do not fit this backbone: the file {'; '.join(problems[:3])}{more}; "
            "give weights of the same architecture and width, and backbone.adapted=NAME if a run "
            "adapted them"
        )
