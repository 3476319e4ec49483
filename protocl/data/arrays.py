"""A data set as four tensors, and the torch data set that serves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from protocl.errors import DataError


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (hexadecimal) of a tensor's type, shape and content, wherever it lives."""
    array = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{array.dtype}{tuple(array.shape)}".encode())
    if array.numel():
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_images(x: Tensor) -> Tensor:
    """Samples as a backbone takes them: float32, ``uint8`` pixels scaled from 0..255 to [0, 1]."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Training and test data in memory.

    Attributes:
        x_train: images ``(N, C, H, W)``, ``uint8`` in 0..255 or ``float32`` in [0, 1]; or feature
            vectors ``(N, D)``, ``float32``.
        y_train: class ids ``(N,)`` int64, each in ``0..n_classes - 1``.
        x_test: as ``x_train``, ``(M, ...)``.
        y_test: as ``y_train``, ``(M,)``.
        class_names: one name per class id; its length is ``n_classes``.
        name: name of the data set.
        clients: who holds each training sample, ``(N,)`` int64 numbers of ``client_names``; None
            where the data do not say.
        client_names: of those who hold training samples.
        arrival: class ids in the order in which the data say that they arrive; empty where they
            do not.

    Raises:
        DataError: shapes, types or labels do not fit together.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: list[str]
    name: str
    clients: Tensor | None = None
    client_names: tuple[str, ...] = ()
    arrival: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for part, x, y in (
            ("training", self.x_train, self.y_train),
            ("test", self.x_test, self.y_test),
        ):
            self._check(part, x, y)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {tuple(self.x_train.shape[1:])} but test images "
                f"are {tuple(self.x_test.shape[1:])}; give both the same shape"
            )
        if self.clients is not None and self.clients.shape != self.y_train.shape:
            raise DataError(
                f"{self.name}: {len(self.clients)} clients are named for {len(self.y_train)} "
                "training samples; expected one each"
            )

    def _check(self, part: str, x: Tensor, y: Tensor) -> None:
        if x.ndim not in (2, 4) or x.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"{self.name}: {part} data is {x.dtype} of shape {tuple(x.shape)}; expected images "
                "(N, C, H, W) as uint8 or float32, or features (N, D) as float32"
            )
        if y.shape != (len(x),) or y.dtype != torch.int64:
            raise DataError(
                f"{self.name}: {part} labels are {y.dtype} of shape {tuple(y.shape)}; expected "
                f"int64 of shape ({len(x)},)"
            )
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.class_names):
            raise DataError(
                f"{self.name}: {part} labels lie in {int(y.min())}..{int(y.max())}; expected "
                f"0..{len(self.class_names) - 1}, one for each of the {len(self.class_names)} names"
            )

    @property
    def n_classes(self) -> int:
        """Number of class ids."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: ``(C, H, W)`` or ``(D,)``."""
        return tuple(self.x_train.shape[1:])

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hexadecimal) of images, labels, class names and who holds what."""
        tensors = (self.x_train, self.y_train, self.x_test, self.y_test)
        parts = [tensor_hash(tensor) for tensor in tensors] + self.class_names
        if self.clients is not None:
            parts += [tensor_hash(self.clients), *self.client_names]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def with_samples(self, x_train: Tensor, x_test: Tensor) -> ArrayData:
        """Replace the samples, such as by features of the images, and keep their labels."""
        return replace(self, x_train=x_train, x_test=x_test)

    def select(self, train: Tensor, test: Tensor) -> ArrayData:
        """Only these training and test samples: row numbers or truth values for all rows."""
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_test[test],
            y_test=self.y_test[test],
            clients=None if self.clients is None else self.clients[train],
        )


class TensorData(Dataset[tuple[Tensor, int]]):
    """Tensors in memory as a torch data set; ``uint8`` stays ``uint8`` until it is served.

    Args:
        x: ``(N, ...)``, ``uint8`` in 0..255 or floating point.
        y: class ids ``(N,)``, integers.

    Attributes:
        x: the stored samples.
        targets: class ids as a list, which is what Avalanche reads.
        y: the same as an int64 tensor.
    """

    def __init__(self, x: Tensor, y: Tensor | Sequence[int]) -> None:
        if len(x) != len(y):
            raise DataError(f"{len(x)} samples but {len(y)} labels; expected one label per sample")
        self.x = x
        self.y = torch.as_tensor(y, dtype=torch.int64)
        self.targets: list[int] = self.y.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return as_images(self.x[index]), self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Many samples in one indexing operation; torch's ``DataLoader`` calls this."""
        x, y = self.batch(indices)
        return list(zip(x.unbind(), y.tolist(), strict=True))

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(B, ...)`` float32 and labels ``(B,)`` int64 at ``indices``."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.x.device)
        return as_images(self.x[rows]), self.y[rows.to(self.y.device)]
