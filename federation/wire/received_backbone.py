"""One backbone for all: the server sends its weights, clients check them before they use them."""

from __future__ import annotations

import numpy as np
import safetensors.torch
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from safetensors import SafetensorError
from torch import Tensor, nn

from protocl.backbones.base import fingerprint
from protocl.backbones.features import extract
from protocl.errors import FingerprintError
from protocl.federation.wire.npy import array_of, read_npy

_KEY = "backbone"


def backbone_record(backbone: nn.Module) -> ArrayRecord:
    """All weights of a backbone as one array of ``.safetensors`` bytes."""
    content = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    )
    return ArrayRecord({"weights": array_of(np.frombuffer(content, dtype=np.int8))})


class ReceivedBackbone:
    """A client's copy of the federation's backbone.

    What is received is kept in Flower's persistent client state. It is used only if the loaded
    backbone has the fingerprint (weights, architecture and preprocessing) that the server merges.

    Args:
        module: the architecture; its weights are replaced.
        trusted: the one fingerprint that this client accepts; None for any that fits its weights.
    """

    def __init__(self, module: nn.Module, trusted: str | None = None) -> None:
        self.module = module
        self.trusted = trusted
        self._loaded = ""

    def require(self, expected: str, content: RecordDict, context: Context) -> None:
        """Have the backbone with this fingerprint loaded, from the message or from earlier ones.

        Raises:
            FingerprintError: it was not received, is not the trusted one, or the weights received
                are others than announced.
        """
        if self.trusted is not None and expected != self.trusted:
            raise FingerprintError(
                f"the server distributes backbone {expected}; this client trusts {self.trusted}"
            )
        if _KEY in content.array_records:
            context.state[_KEY] = content.array_records[_KEY]
        if self._loaded == expected:
            return
        if _KEY not in context.state.array_records:
            raise FingerprintError(f"backbone {expected} has not been received from the server")
        self._loaded = ""
        try:
            self._load(context.state.array_records[_KEY])
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            del context.state[_KEY]
            raise FingerprintError(f"weights received do not fit the backbone: {error}") from error
        got = fingerprint(self.module)
        if got != expected:
            del context.state[_KEY]
            raise FingerprintError(
                f"weights received make backbone {got}, announced was {expected}; give server and "
                "clients the same architecture and preprocessing"
            )
        self._loaded = expected

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(N, D)`` of samples ``(N, ...)``."""
        return extract(self.module, x, progress=False)

    def _load(self, record: ArrayRecord) -> None:
        weights = safetensors.torch.load(read_npy(record["weights"].data).tobytes())
        self.module.load_state_dict(weights, strict=True)


def without_weights(backbone: nn.Module) -> nn.Module:
    """A copy whose weights are zero: what a client has before the server distributes them."""
    from copy import deepcopy

    copy = deepcopy(backbone)
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            tensor.zero_()
    return copy
