"""Features of a frozen backbone: computed in one pass, and kept on disk."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from protocl.backbones.base import Backbone, fingerprint
from protocl.backbones.batch_size import (
    default_batch_size,
    is_worth_measuring,
    quickest_batch_size,
)
from protocl.data.arrays import ArrayData, as_images, tensor_hash
from protocl.io.atomic import atomic_path, atomic_write, discard_partial, locked
from protocl.io.progress import progress_bar
from protocl.memory.limits.capacity import require_bytes

logger = logging.getLogger(__name__)

FORMAT = "protocl-features-1"
SHARD = 4096


CarryOut = Callable[[Sequence[Callable[[], Tensor]]], Sequence[Tensor]]
"""Makes tensors that are each independent of the others."""


def one_by_one(makes: Sequence[Callable[[], Tensor]]) -> Sequence[Tensor]:
    """Make one tensor after the other, here."""
    return [make() for make in makes]


def extract(
    backbone: nn.Module,
    x: Tensor,
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Tensor:
    """Features of all samples, in one pass without gradients and in evaluation mode.

    The backbone is left as it was found: device, each submodule's own train/eval mode, statistics
    of its normalisation layers. No random numbers are drawn.

    Args:
        backbone: maps ``(B, ...)`` float32 to features ``(B, D)``.
        x: samples ``(N, ...)``, ``uint8`` images in 0..255 or float32, on any device.
        batch_size: samples per forward pass; None for a size that suits images and device.
        device: where to compute; None for where the backbone is.
        progress: show a bar if the pass takes longer than two seconds.

    Returns:
        ``(N, D)`` float32 on the CPU.
    """
    with (
        frozen(backbone, device) as target,
        progress_bar("encoding", len(x), enabled=progress) as bar,
    ):
        size = batch_size or default_batch_size(backbone, x, target)
        return _encode(backbone, x, size, target, bar.update)


@contextmanager
def frozen(backbone: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Evaluation mode without gradients on ``device``, yielded; all is put back afterwards."""
    places = [tensor.device for tensor in (*backbone.parameters(), *backbone.buffers())]
    home = places[0] if places else torch.device("cpu")
    target = home if device is None else torch.device(device)
    training = [module for module in backbone.modules() if module.training]
    # Moving nothing takes a walk over all modules, as long as a tenth of a pass of one image.
    away = any(place != target for place in places)
    try:
        if away:
            backbone.to(target)
        if training:
            backbone.eval()
        with torch.no_grad():
            yield target
    finally:
        if away:
            backbone.to(home)
        for module in training:
            module.training = True


def _encode(
    backbone: nn.Module,
    x: Tensor,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> Tensor:
    features: Tensor | None = None
    # One batch, even if empty, tells the width.
    for start in range(0, max(len(x), 1), batch_size):
        batch = as_images(x[start : start + batch_size].to(device))
        encoded = backbone(batch)
        if features is None:
            features = torch.empty(len(x), encoded.shape[1], dtype=torch.float32)
        features[start : start + len(batch)] = encoded
        advance(len(batch))
    assert features is not None
    return features


RAW_PIXELS = 1024
"""Values of an image from which on its pixels hardly serve as features."""


def require_fit(data: ArrayData, backbone: nn.Module) -> None:
    """Warn where large images are taken as they are, pixel by pixel.

    Args:
        data: images or feature vectors.
        backbone: makes features of them.
    """
    size = math.prod(data.input_shape)
    if takes_raw(backbone) and len(data.input_shape) == 3 and size > RAW_PIXELS:
        logger.warning(
            "backbone=identity takes the %s pixel values of an image of %s as its features, which "
            "tell classes apart badly; backbone=efficientnet_lite0 or another trained network "
            "gives better ones",
            f"{size:,}", data.name,
        )  # fmt: skip


def takes_raw(backbone: nn.Module) -> bool:
    """Whether a backbone gives samples as they are."""
    return isinstance(backbone, Backbone) and backbone.architecture == "identity"


def encode_once(
    data: ArrayData,
    backbone: nn.Module,
    cache: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    batch_size: int | None = None,
    progress: bool = True,
    carry_out: CarryOut = one_by_one,
) -> ArrayData:
    """Replace the samples of a data set by features ``(N, D)`` of a frozen backbone, once ever.

    Args:
        data: images or feature vectors.
        backbone: makes features of them.
        cache: folder of a :class:`FeatureCache`.
        device: where to compute.
        batch_size: as for :func:`extract`.
        progress: likewise.
        carry_out: as for :meth:`FeatureCache.encode`.

    Raises:
        CapacityError: samples that are taken as they are would not fit in memory.
    """
    require_fit(data, backbone)
    if not takes_raw(backbone):
        return FeatureCache(cache).encode(
            data, backbone, batch_size=batch_size, device=device, progress=progress,
            carry_out=carry_out,
        )  # fmt: skip
    n, size = len(data.x_train) + len(data.x_test), math.prod(data.input_shape)
    require_bytes(
        4 * n * size, torch.device("cpu"), f"{n:,} samples of {size:,} numbers as features", dict
    )
    return data.with_samples(as_images(data.x_train).flatten(1), as_images(data.x_test).flatten(1))


class FeatureCache:
    """Features on disk: a frozen backbone sees each image once, ever.

    A file holds the features of up to 4,096 consecutive samples. It is found by what it was made
    from: the fingerprint of the backbone (weights and preprocessing), a hash of the samples, and
    how many of them went through at a time where that is not as :func:`.default_batch_size` has
    it; labels do not count. A stopped run therefore continues where it was, two processes that
    need the same features compute them once between them, and nothing has to be invalidated. Each
    file carries a checksum; one that is damaged is reported and computed again. Features are those
    of the device that computed them first.

    Args:
        root: folder of the cache; created when needed. It may be deleted at any time.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()

    def encode(
        self,
        data: ArrayData,
        backbone: nn.Module,
        *,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
        carry_out: CarryOut = one_by_one,
    ) -> ArrayData:
        """Replace the samples of a data set by features ``(N, D)``, from the cache where they are.

        Arguments are those of :func:`extract`, and ``carry_out``, which makes the features of each
        file, such as in several processes.
        """
        samples = len(data.x_train) + len(data.x_test)
        key = fingerprint(backbone)
        with (
            frozen(backbone, device) as target,
            progress_bar(f"encoding {data.name}", samples, enabled=progress) as bar,
        ):

            def shard(x: Tensor) -> Tensor:
                size = batch_size or default_batch_size(backbone, x, target)
                path = self.path(key, tensor_hash(x), _unusual(size, backbone, x, target))
                return _shard(path, x, lambda: _encode(backbone, x, size, target, bar.update), bar)

            parts = data.x_train.split(SHARD), data.x_test.split(SHARD)
            made = carry_out([partial(shard, part) for part in chain(*parts)])
            cut = len(parts[0])
            return data.with_samples(torch.cat(list(made[:cut])), torch.cat(list(made[cut:])))

    def quickest_batch_size(
        self, data: ArrayData, backbone: nn.Module, device: torch.device | str | None = None
    ) -> int | None:
        """The batch size to encode ``data`` with: measured once for all passes like this one.

        What was measured is kept beside the features of the backbone, for samples of this shape.
        Where features by the rule are there already, it stays; for fewer images than pay for
        measuring, for vectors and on other devices than a CPU as well.

        Args:
            data: images.
            backbone: makes features of them.
            device: where to compute.

        Returns:
            The size, or None where it was neither measured nor had to be.
        """
        x = data.x_train
        with frozen(backbone, device) as target:
            rule = default_batch_size(backbone, x, target)
            if not is_worth_measuring(len(x) + len(data.x_test), x, rule, target):
                return None
            key = fingerprint(backbone)
            shape = "x".join(map(str, data.input_shape))
            record = self.root / key[:32] / f"batch-size-{shape}-{target.type}.json"
            with locked(record):
                size = _recorded(record)
                if size is None and self.path(key, tensor_hash(x[:SHARD])).exists():
                    size = rule
                if size is None:
                    size = quickest_batch_size(lambda b: backbone(as_images(b)), x, rule)
                    atomic_write(record, json.dumps({"batch_size": size}))
        return size

    def path(
        self, backbone_fingerprint: str, samples_hash: str, batch_size: int | None = None
    ) -> Path:
        """The file in which the features of these samples under this backbone are kept.

        Args:
            backbone_fingerprint: see :func:`protocl.backbones.fingerprint`.
            samples_hash: see :func:`protocl.data.arrays.tensor_hash`.
            batch_size: samples a forward pass, None for the rule.
        """
        name = samples_hash[:32] + ("" if batch_size is None else f"-{batch_size}")
        return self.root / backbone_fingerprint[:32] / f"{name}.safetensors"


def _unusual(size: int, backbone: nn.Module, x: Tensor, device: torch.device) -> int | None:
    """A batch size as part of a file's name: None for that of the rule."""
    return None if size == default_batch_size(backbone, x, device) else size


def _recorded(file: Path) -> int | None:
    """The batch size that was measured, or None where none was or (after a warning) it is lost."""
    if not file.exists():
        return None
    try:
        size = json.loads(file.read_text(encoding="utf-8"))["batch_size"]
    except (ValueError, KeyError, TypeError):
        size = None
    if type(size) is int and size >= 1:
        return size
    logger.warning("%s is damaged and is measured again", file)
    return None


def _shard(path: Path, x: Tensor, compute: Callable[[], Tensor], bar: tqdm[Any]) -> Tensor:
    """Features of one shard, read or else computed and written."""
    # Held while computing, so that a second process waits for the result instead of
    # computing it as well; it is released by the system if the holder dies.
    with locked(path):
        features = _read(path, len(x))
        if features is None:
            discard_partial(path)
            features = compute()
            _write(path, features)
        else:
            bar.update(len(x))
    return features


def _write(path: Path, features: Tensor) -> None:
    metadata = {"format": FORMAT, "sha256": tensor_hash(features)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file({"features": features.contiguous()}, temporary, metadata)


def _read(path: Path, n: int) -> Tensor | None:
    """The features in ``path``, or None if it is absent or (after a warning) damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features: Tensor = file.get_tensor("features")
    except SafetensorError as error:
        logger.warning("%s is damaged (%s) and is computed again", path, error)
        return None
    whole = metadata.get("sha256") == tensor_hash(features) and len(features) == n
    if metadata.get("format") != FORMAT or not whole:
        logger.warning("%s is damaged (its checksum does not fit) and is computed again", path)
        return None
    return features
