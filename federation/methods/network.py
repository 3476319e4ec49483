"""The network that clients train by gradient descent, and its weights as one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.backbones.base import Classifier
from protocl.config.validation import AT_LEAST_1, ranged
from protocl.data.arrays import as_images
from protocl.errors import ConfigError, DataError
from protocl.federation.config import FederationSetup, MethodConfig
from protocl.federation.methods.local_steps import LocalSteps, descend

if TYPE_CHECKING:
    from flwr.app import Context

    from protocl.federation.client.client import Loader

Penalty = Callable[[Tensor, Tensor], Tensor]
"""From embeddings ``(B, D)`` and labels ``(B,)`` to what is added to the cross-entropy."""


@dataclass
class GradientConfig(LocalSteps, MethodConfig):
    """Settings of methods in which clients train a network.

    Attributes:
        train: what learns: ``head``, a linear layer on the frozen features; ``projection``, a layer
            of ``width`` rectified units before it as well; ``backbone``, backbone and head, from
            the samples.
        width: units of the projection.
    """

    train: Literal["head", "projection", "backbone"] = "head"
    width: int = ranged(64, AT_LEAST_1)

    @property
    def needs_samples(self) -> bool:
        """See :class:`protocl.federation.config.MethodConfig`."""
        return self.train == "backbone"

    def build_network(self, setup: FederationSetup) -> Classifier:
        """The network before the first round, the same for all clients.

        Raises:
            ConfigError: a setting is out of range, or a backbone without weights is to be trained.
        """
        self.check()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            embed, width = self._build_embedding(setup)
            head = nn.Linear(width, setup.n_classes)
        # Zeros: every class has the same logit, and no draw matters.
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return Classifier(embed, head)

    def _build_embedding(self, setup: FederationSetup) -> tuple[nn.Module, int]:
        if self.train == "head":
            return nn.Identity(), setup.feature_dim
        if self.train == "projection":
            return nn.Sequential(nn.Linear(setup.feature_dim, self.width), nn.ReLU()), self.width
        if not any(True for _ in setup.backbone.parameters()):
            raise ConfigError(
                "method.train=backbone: this backbone has no weights; use method.train=projection, "
                "or another backbone"
            )
        return setup.backbone, setup.feature_dim


def weights_of(module: nn.Module) -> Tensor:
    """All floating-point parameters and buffers as one vector ``(W,)`` float32."""
    parts = [tensor.detach().reshape(-1).float() for tensor in _floating(module)]
    return torch.cat(parts) if parts else torch.zeros(0)


def set_weights(module: nn.Module, weights: Tensor) -> None:
    """The inverse of :func:`weights_of`.

    Raises:
        DataError: the vector has another length.
    """
    tensors = list(_floating(module))
    sizes = [tensor.numel() for tensor in tensors]
    if weights.shape != (sum(sizes),):
        raise DataError(
            f"weights of shape {tuple(weights.shape)} for a network of {sum(sizes)}; server and "
            "clients must use the same settings"
        )
    with torch.no_grad():
        for tensor, part in zip(tensors, weights.split(sizes), strict=True):
            tensor.copy_(part.view_as(tensor))


def _floating(module: nn.Module) -> Iterator[Tensor]:
    # Counters of batches, the only integers in a network, say nothing to an average.
    return (tensor for tensor in module.state_dict().values() if tensor.is_floating_point())


def arrived(load: Loader, context: Context, round_number: int) -> tuple[Tensor, Tensor]:
    """Samples ``(N, ...)`` and labels ``(N,)`` that a client has in a round; N may be 0."""
    chunks = load(context).chunks
    x, y = zip(*chunks[:round_number], strict=True)
    return torch.cat(x), torch.cat(y)


def train(
    network: Classifier,
    x: Tensor,
    y: Tensor,
    config: GradientConfig,
    seed: int,
    penalty: Penalty | None = None,
) -> None:
    """Local epochs of SGD on the cross-entropy, and the penalty on the embeddings.

    Args:
        network: trained in place.
        x: samples ``(N, ...)``.
        y: class ids ``(N,)``.
        config: of the steps.
        seed: of the order of the samples.
        penalty: none by default.
    """

    def loss(rows: Tensor) -> Tensor:
        embedded = network.backbone(as_images(x[rows]))
        cross_entropy = functional.cross_entropy(network.classifier(embedded), y[rows])
        return cross_entropy if penalty is None else cross_entropy + penalty(embedded, y[rows])

    network.train()
    descend(config, network.parameters(), loss, len(y), torch.Generator().manual_seed(seed))
    network.eval()


def client_seed(seed: int, context: Context, round_number: int) -> int:
    """Of a client's draws in a round."""
    partition = int(context.node_config.get("partition-id", context.node_id))
    return (seed * 1_000_003 + partition) * 100_003 + round_number
