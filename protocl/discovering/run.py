"""One discovery of categories, from its configuration to its accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protocl.backbones import fingerprint
from protocl.backbones.build import build_unscaled
from protocl.cli.tables import plain_table
from protocl.config.arguments import Settings
from protocl.config.compose import build
from protocl.data import ArrayData
from protocl.discovering.config import DiscoverConfig
from protocl.errors import ConfigError, as_config_error
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import FeatureMap, UnitNorm, map_for
from protocl.metrics.clusters import SplitAccuracy, split_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.discovery.class_number import Estimate, by_labelled_accuracy
from protocl.open_world.discovery.k_means import SemiSupervisedKMeans
from protocl.open_world.discovery.split import labelled_samples
from protocl.open_world.discovery.whitened import Whitened
from protocl.registry import BACKBONES, BENCHMARKS
from protocl.runner.context import RunContext
from protocl.runner.folders import read_result
from protocl.runner.kind import Kind

if TYPE_CHECKING:
    from rich.console import Console


class DiscoveryKind(Kind[DiscoverConfig]):
    """Discovery of categories. It takes minutes at most, and begins anew where it was stopped."""

    name = "discovery"

    def compose(self, settings: Settings) -> DiscoverConfig:
        """See :class:`protocl.runner.kind.Kind`."""
        groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES}
        return build(DiscoverConfig, settings, groups, {"benchmark": "digits", "backbone": "auto"})

    def execute(self, run: RunContext[DiscoverConfig]) -> dict[str, Any]:
        """See :class:`protocl.runner.kind.Kind`."""
        return Discovery(run).finish()

    def show(self, folders: Sequence[Path], output: Path | None, console: Console) -> None:
        """Print how well the categories of each run fit the classes."""
        table = plain_table("categories discovered")
        for title in ("run", "seed", "K", "true K", "All %", "Old %", "New %"):
            table.add_column(title, justify="left" if title == "run" else "right")
        for folder in folders:
            result = read_result(folder)
            if result is not None:
                found = result["discovery"]
                shares = [found["accuracy"][key] for key in ("all", "old", "new")]
                numbers = (result["seed"], found["categories"], found["true_categories"])
                table.add_row(result["name"], *map(str, numbers), *map(_percent, shares))
        console.print(table)


DISCOVERY = DiscoveryKind()


@dataclass(frozen=True)
class Samples:
    """Features of the training samples and what is known of them.

    Attributes:
        x: ``(N, D)``.
        y: ``(N,)`` true classes.
        labelled: ``(N,)`` whether the class is told.
        known: ids of the known classes.
    """

    x: Tensor
    y: Tensor
    labelled: Tensor
    known: Tensor

    def table(self, predicted: Tensor, of: Tensor) -> Confusion:
        """True classes against clusters, of some samples."""
        return Confusion.from_predictions(self.y[of], predicted)


class Discovery:
    """The state of one discovery.

    Args:
        run: its surroundings.
    """

    def __init__(self, run: RunContext[DiscoverConfig]) -> None:
        self.run, self.config = run, run.config
        data = run.load_data()
        self.names = data.class_names
        self.backbone = build_unscaled(run.config.backbone, data.input_shape, run.config.seed)
        encoded = run.encode(data, self.backbone)
        self.samples = _samples(encoded, run.config)

    def finish(self) -> dict[str, Any]:
        """Find the categories and compare them with the classes."""
        with self.run.phase("space"):
            space = self._space()
        estimate = self._estimate(space) if self.config.categories == "estimated" else None
        categories = estimate.categories if estimate else self._given()
        unlabelled = ~self.samples.labelled
        with self.run.phase("cluster"), as_config_error("categories: "):
            known = self._memory("mean", space)
            found = self._means(categories).fit(known, self.samples.x[unlabelled])
        predicted = found.predict(space(self.samples.x[unlabelled]))
        return self._result(self.samples.table(predicted, unlabelled), estimate, categories)

    def _given(self) -> int:
        asked = self.config.categories
        return asked if isinstance(asked, int) else len(self.samples.y.unique())

    def _space(self) -> FeatureMap:
        with as_config_error("map="):
            wish = self.config.map or "identity"
            first = map_for(wish, self.samples.x.shape[1], seed=self.config.seed)
        if self.config.whitening is None:
            return UnitNorm() if self.config.spherical and wish == "identity" else first
        with as_config_error("whitening: "):
            return Whitened.of(self._memory("shared", first), self.config.whitening)

    def _memory(self, level: Any, space: FeatureMap) -> PrototypeMemory:
        memory = PrototypeMemory(self.samples.x.shape[1], level, feature_map=space)
        labelled = self.samples.labelled
        return memory.update(self.samples.x[labelled], self.samples.y[labelled])

    def _means(self, categories: int) -> SemiSupervisedKMeans:
        config = self.config
        return SemiSupervisedKMeans(
            categories, restarts=config.restarts, iterations=config.iterations,
            spherical=config.spherical, seed=config.seed,
        )  # fmt: skip

    def _estimate(self, space: FeatureMap) -> Estimate:
        """The number at which labelled samples, clustered without labels, are best in place."""
        config, samples = self.config, self.samples
        drawn = torch.randperm(
            len(samples.x), generator=torch.Generator().manual_seed(config.seed)
        )[: config.estimate_samples]
        labelled = drawn[samples.labelled[drawn]]
        mapped = space(samples.x[drawn])
        nothing = PrototypeMemory(mapped.shape[1])
        restarts = min(config.restarts, 2)  # a curve needs less than the categories themselves

        def table_of(categories: int) -> Confusion:
            means = self._means(categories)
            means.restarts = restarts
            found = means.fit(nothing, mapped)
            return samples.table(found.predict(mapped[samples.labelled[drawn]]), labelled)

        with self.run.phase("estimate"), as_config_error("categories=estimated: "):
            most = min(int(config.most * len(samples.known)), len(drawn))
            if most <= len(samples.known):
                raise ConfigError(
                    f"most={config.most:g} times {len(samples.known)} known classes leaves no "
                    "number to try: give a larger most"
                )
            return by_labelled_accuracy(table_of, len(samples.known), most, tries=config.tries)

    def _result(
        self, table: Confusion, estimate: Estimate | None, categories: int
    ) -> dict[str, Any]:
        known, config = self.samples.known, self.config
        new = [c for c in range(len(self.names)) if c not in set(known.tolist())]
        accuracies = {form: split_accuracy(table, known, form) for form in FORMS}
        return {
            "benchmark": {
                "name": config.benchmark.name,
                "n_experiences": 1,
                "classes_per_experience": [known.tolist(), new],
                "data_hash": self.run.data_hash,
                "n_train": len(self.samples.x),
                "class_names": self.names,
            },
            "backbone": {
                "name": config.backbone.name,
                "fingerprint": fingerprint(self.backbone),
                "feature_dim": self.backbone.feature_dim,
            },
            self.run.kind: {
                "categories": categories,
                "true_categories": len(self.samples.y.unique()),
                "labelled": int(self.samples.labelled.sum()),
                "unlabelled": table.total,
                "accuracy": accuracies["v2"]._asdict(),
                "accuracy_v1": accuracies["v1"]._asdict(),
                "accuracy_balanced": accuracies["balanced"]._asdict(),
                "tried": {} if estimate is None else estimate.curve,
                "table": table.to_dict(),
            },
        }


FORMS: tuple[Any, ...] = ("v2", "v1", "balanced")


def _samples(data: ArrayData, config: DiscoverConfig) -> Samples:
    classes = data.y_train.unique()
    if config.known_classes > len(classes):
        raise ConfigError(
            f"known_classes={config.known_classes}: expected at most the {len(classes)} classes "
            f"of {data.name}"
        )
    known = classes[: config.known_classes]
    chosen = labelled_samples(data.y_train, known, config.labelled, config.split_seed)
    if len(data.y_train[chosen].unique()) < len(known) or bool(chosen.all()):
        raise ConfigError(
            f"labelled={config.labelled} leaves a known class without a labelled sample, or none "
            "unlabelled: give another share"
        )
    return Samples(data.x_train, data.y_train, chosen, known)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def accuracy_of(result: dict[str, Any]) -> SplitAccuracy:
    """The accuracies that the result of a discovery holds."""
    return SplitAccuracy(**result["discovery"]["accuracy"])
