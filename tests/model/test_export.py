"""Graphs of every head: onnxruntime and ``torch.export`` beside the head itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.errors import CapacityError, ConfigError, DataError, ExportError, NotFittedError
from protocl.heads import (
    BayesianPrototypes,
    Head,
    LinearDiscriminant,
    Mahalanobis,
    NearestMean,
    Ridge,
)
from protocl.heads.covariance import forms
from protocl.model import Network, export, export_onnx, export_program
from protocl.model.export import largest_difference
from protocl.registry import HEADS

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")


WIDTH = 12
CLOSE = 1e-5
"""Largest difference of logits, as a share of the largest logit."""

MAGNIFIES = {"klda_ensemble": 1e-4}
"""Heads whose covariances of random cosines are close to singular, and magnify the last bits."""

VARIANTS: dict[str, Callable[..., Head]] = {
    "nearest_mean cosine": lambda **o: NearestMean("cosine", **o),
    "nearest_mean unit": lambda **o: NearestMean(normalize_input=True, normalize_mean=True, **o),
    "lda auto": lambda **o: LinearDiscriminant(
        "auto", normalize_input=True, priors="empirical", **o
    ),
    "lda streaming": lambda **o: LinearDiscriminant(streaming=True, **o),
    "ridge top k": lambda **o: Ridge(map="top_k:dim=30:degree=4", bias=True, normalize=True, **o),
    "lda fourier": lambda **o: LinearDiscriminant("auto", map="random_fourier:dim=30", **o),
    "ridge projected": lambda **o: Ridge(50, regularization=10.0, **o),
    "fecam_vit": lambda **o: Mahalanobis((1, 0), shrink_passes=1, tukey=None, **o),
    "mahalanobis log": lambda **o: Mahalanobis(None, tukey=0.0, mean_of="transformed", **o),
    "mahalanobis cube": lambda **o: Mahalanobis(tukey=3.0, normalize=False, **o),
    "mahalanobis variances": lambda **o: Mahalanobis(correlation=False, **o),
    "mahalanobis low_rank": lambda **o: Mahalanobis(covariance="low_rank", rank=3, **o),
    "mahalanobis diagonal": lambda **o: Mahalanobis(covariance="low_rank", rank=0, **o),
    "mahalanobis shared": lambda **o: Mahalanobis(covariance="shared", **o),
    "bayesian diag": lambda **o: BayesianPrototypes(covariance="diag", **o),
    "bayesian full": lambda **o: BayesianPrototypes(covariance="full", **o),
}


def samples(classes: int, number: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive features, and labels of which the last class has but one."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(classes, WIDTH, generator=torch.Generator().manual_seed(classes))
    labels = torch.arange(number) % max(classes - 1, 1)
    labels[-1] = classes - 1
    noise = torch.rand(number, WIDTH, generator=generator)
    return means[labels] + noise / 4 + 0.01, labels


def made(name: str, **options) -> Head:
    return VARIANTS[name](**options) if name in VARIANTS else HEADS.get(name)(**options)


def fitted(head: Head, classes: int = 3) -> Head:
    features, labels = samples(classes, 5 * classes + 20)
    return head.fit(head.new_memory(WIDTH).update(features, labels))


class Together(Head):
    """Several heads in one, so that one graph serves to hold them all against Python.

    Logits are divided by a head's largest one, which brings all to one scale.
    """

    keeps_digits: ClassVar[bool] = True

    def __init__(self, heads: list[Head]) -> None:
        super().__init__(dtype=torch.float64)
        self.heads = torch.nn.ModuleList(heads)
        self.largest = [float(head(samples(3, 30)[0]).abs().max()) for head in heads]

    def _fit(self, memory) -> None:
        """There is nothing of its own."""

    def _logits(self, features):
        answers = [head(features).double() for head in self.heads]
        pairs = zip(answers, self.largest, strict=True)
        return torch.cat([logits / largest for logits, largest in pairs], dim=1)


Kind = tuple[str, torch.dtype, int]
"""Name, precision and number of classes of a head."""

EACH: list[Kind] = [
    *((name, torch.float32, 100) for name in (*HEADS.names(), *VARIANTS)),
    *((name, torch.float64, 2) for name in HEADS.names()),
]
EVERY: list[Kind] = [
    (name, precision, classes)
    for name in (*HEADS.names(), *VARIANTS)
    for precision in (torch.float32, torch.float64)
    for classes in (2, 100)
]


class Graphs:
    """Some heads, exported together for features of one type."""

    def __init__(self, kinds: list[Kind], dtype: torch.dtype, folder: Path) -> None:
        self.dtype = dtype
        heads = [fitted(made(name, dtype=precision), classes) for name, precision, classes in kinds]
        self.columns = [kind for kind in kinds for _ in range(kind[2])]
        head = Together(heads)
        one = torch.rand(len(self.columns), WIDTH)
        head.fit(head.new_memory(WIDTH).update(one, torch.arange(len(one))))
        self.network = Network(None, head)
        example = self.features(1)
        self.program = export_program(self.network, example).module()
        self.session = session(export_onnx(self.network, example, folder / "heads.onnx"))

    def features(self, number: int) -> torch.Tensor:
        return samples(100, number, seed=number)[0].to(self.dtype)

    def run(self, features: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"features": features.numpy()})[0])

    def off(self, found: torch.Tensor, expected: torch.Tensor) -> set[Kind]:
        """Heads of which a logit is further from Python's than a share of the largest one."""
        assert found.shape == expected.shape
        differences = (found - expected).abs().amax(0).tolist()
        pairs = zip(self.columns, differences, strict=True)
        return {one for one, apart in pairs if not apart <= MAGNIFIES.get(one[0], CLOSE)}


def session(path: Path):
    return onnxruntime.InferenceSession(path)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Graphs:
    return Graphs(EACH, torch.float32, tmp_path_factory.mktemp("heads"))


@pytest.mark.parametrize("number", [1, 2, 17])
def test_graphs_answer_as_every_head(graphs, number):
    features = graphs.features(number)
    expected = graphs.network(features)
    assert graphs.off(graphs.run(features), expected) == set()
    assert graphs.off(graphs.program(features), expected) == set()


def test_no_sample_has_no_logit(graphs):
    nothing = graphs.features(1)[:0]
    assert graphs.run(nothing).shape == (0, len(graphs.columns))
    assert graphs.program(nothing).shape == (0, len(graphs.columns))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graphs_answer_in_every_precision_and_of_few_and_many_classes(dtype, tmp_path):
    graphs = Graphs(EVERY, dtype, tmp_path)
    for number in (1, 2, 17):
        features = graphs.features(number)
        expected = graphs.network(features)
        assert graphs.off(graphs.run(features), expected) == set()
        assert graphs.off(graphs.program(features), expected) == set()


def test_features_that_are_refused_get_no_number(graphs):
    features = graphs.features(4)
    features[0, 3], features[1, 0], features[2, 5] = torch.nan, torch.inf, -1.0
    rooted = [name.split()[0] == "mahalanobis" for name, _, _ in graphs.columns]
    for found in (graphs.run(features), graphs.program(features)):
        assert found[:2].isnan().all()
        assert found[2].isnan().tolist() == rooted
        assert graphs.off(found[3:], graphs.network(features[3:])) == set()


def facts_of(path: Path) -> dict:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def simple(tmp_path_factory) -> tuple[Network, Path]:
    network = Network(None, fitted(NearestMean()), class_names=["a", "b", "sieben, größer"])
    path = tmp_path_factory.mktemp("simple") / "a folder" / "modèle.onnx"
    return network, export_onnx(network, samples(3, 1)[0], path)


def test_a_file_says_what_it_is(simple):
    network, path = simple
    assert largest_difference(network, samples(3, 17, seed=4)[0], path) <= CLOSE
    graph = session(path)
    assert [(entry.name, entry.shape) for entry in graph.get_inputs()] == [
        ("features", ["batch", WIDTH])
    ]
    assert [(entry.name, entry.shape) for entry in graph.get_outputs()] == [
        ("logits", ["batch", 3])
    ]
    facts = facts_of(path)
    assert facts["classes"] == [0, 1, 2]
    assert facts["class_names"] == ["a", "b", "sieben, größer"]
    assert facts["input"] == {"type": "float32", "shape": ["batch", WIDTH]}
    assert facts["head"] == "NearestMean"


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("conv4", {"width": 8}, (1, 20, 20)), ("vit", {"width": 64, "image_size": 8}, (3, 12, 12))],
)
def test_backbones_with_their_preprocessing(name, options, shape, tmp_path):
    backbone = build_backbone(BackboneConfig(name, **options), shape, seed=0).eval()
    images = torch.randint(0, 256, (18, *shape), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        features = backbone(images)
    head = NearestMean()
    head.fit(head.new_memory(features.shape[1]).update(features, torch.arange(18) % 3))
    network = Network(backbone, head)
    path = export_onnx(network, images[:1], tmp_path / "model.onnx")
    for number in (1, 2, 17):
        assert largest_difference(network, images[:number], path) <= CLOSE
    facts = facts_of(path)
    assert facts["preprocessing"] == backbone.preprocessing()
    assert facts["input"] == {"type": "uint8", "shape": ["batch", *shape]}


# -- what a graph is a picture of ------------------------------------------------------------


def test_a_graph_stays_as_it_was_when_its_network_learns_on():
    head = LinearDiscriminant("auto")
    features, labels = samples(4, 60)
    memory = head.new_memory(WIDTH).update(features, labels)
    network = Network(None, head.fit(memory))
    before = network(features)
    program = export_program(network, features).module()
    more = head.new_memory(WIDTH).update(*samples(6, 60, seed=5))
    head.fit(memory.merge(more))
    torch.testing.assert_close(program(features), before)
    merged = export_program(network, features).module()
    torch.testing.assert_close(merged(features), network(features))
    gone = head.new_memory(WIDTH).update(features[labels == 3], labels[labels == 3])
    head.fit(memory.subtract(more).subtract(gone))
    assert network.class_names == ["0", "1", "2"]
    forgotten = export_program(network, features).module()
    torch.testing.assert_close(forgotten(features), network(features))


def sure() -> tuple[Network, torch.Tensor]:
    head = LinearDiscriminant()
    features, labels = samples(5, 80)
    head.calibrate(head.new_memory(WIDTH, calibrated=True).update(features, labels))
    return Network(None, head), features


def test_a_program_gives_the_probabilities_of_the_calibrated_head():
    network, features = sure()
    logits, chances = export_program(network, features, probabilities=True).module()(features)
    torch.testing.assert_close(logits, network(features))
    torch.testing.assert_close(chances, network.head.predict_proba(features), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_file_gives_the_probabilities_of_the_calibrated_head(tmp_path):
    network, features = sure()
    path = export_onnx(network, features, tmp_path / "sure.onnx", probabilities=True)
    logits, chances = session(path).run(["logits", "probabilities"], {"features": features.numpy()})
    assert abs(logits - network(features).numpy()).max() <= CLOSE * abs(logits).max()
    expected = network.head.predict_proba(features)
    torch.testing.assert_close(torch.from_numpy(chances), expected, rtol=0, atol=1e-5)


def test_probabilities_need_a_calibration():
    network = Network(None, fitted(NearestMean()))
    with pytest.raises(NotFittedError, match="calibrate"):
        export_program(network, samples(3, 2)[0], probabilities=True)


def test_a_trained_layer_in_the_place_of_a_head():
    torch.manual_seed(0)
    network = Network(None, torch.nn.Linear(WIDTH, 3), class_names=["a", "b", "c"])
    features = samples(3, 17)[0]
    program = export_program(network, features).module()
    torch.testing.assert_close(program(features), network(features).detach())
    assert program(torch.full((1, WIDTH), torch.inf)).isnan().all()


def test_many_classes_with_a_covariance_each_are_taken_in_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(forms, "_PIECE", 32 * WIDTH * 7)
    network = Network(None, fitted(Mahalanobis(), 20))
    features = samples(20, 40)[0]
    path = export_onnx(network, features[:1], tmp_path / "groups.onnx")
    assert largest_difference(network, features, path) <= CLOSE
    subtractions = [node for node in onnx.load(path).graph.node if node.op_type == "Sub"]
    assert len(subtractions) == 1 + 3  # the centre, and the means of 7, 7 and 6 classes


def test_a_program_writes_to_no_tensor_and_passes_gradients():
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())
    network = Network(backbone, fitted(NearestMean()))
    features = samples(3, 5)[0].requires_grad_()
    program = export_program(network, features.detach())
    assert all(".out" not in str(node.target) for node in program.graph.nodes)
    logits = program.module()(features)
    torch.testing.assert_close(logits, network(features))
    logits.sum().backward()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("switch", ["autocast", "inference"])
def test_the_caller_s_modes_do_not_reach_the_graph(switch):
    network, features = Network(None, fitted(Mahalanobis())), samples(3, 5)[0]
    expected = network(features)
    mode = torch.autocast("cpu", torch.bfloat16) if switch == "autocast" else torch.inference_mode()
    with mode:
        program = export_program(network, features).module()
    torch.testing.assert_close(program(features), expected)


def test_one_class_and_a_memory_in_fixed_point():
    head = NearestMean("cosine")
    features = samples(1, 9)[0]
    memory = head.new_memory(WIDTH, exact=True).update(features, torch.full((9,), 41))
    network = Network(None, head.fit(memory))
    program = export_program(network, features).module()
    torch.testing.assert_close(program(features), network(features))


def test_images_out_of_range_get_no_number(tmp_path):
    backbone = build_backbone(BackboneConfig("conv4", width=4), (1, 8, 8), seed=0).eval()
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    head = NearestMean()
    with torch.no_grad():
        features = backbone(images)
    head.fit(head.new_memory(features.shape[1]).update(features, torch.arange(4) % 2))
    path = export_onnx(Network(backbone, head), images, tmp_path / "model.onnx")
    images[1] *= 255
    (logits,) = session(path).run(None, {"images": images.numpy()})
    assert torch.from_numpy(logits).isnan().all(1).tolist() == [False, True, False, False]


# -- what is refused -------------------------------------------------------------------------


class Branching(NearestMean):
    """A head of somebody else's that looks at the values."""

    def _queries(self, features):
        return features if float(features.max()) > 0 else -features


class BranchingNetwork(torch.nn.Module):
    """A backbone that does."""

    def forward(self, images):
        return images.flatten(1) * (2 if images.max() > 0 else 1)


def test_a_head_that_looks_at_values_is_named():
    network = Network(None, fitted(Branching()))
    with pytest.raises(ExportError, match="the head Branching cannot be exported"):
        export_program(network, samples(3, 2)[0])


def test_a_backbone_that_looks_at_values_is_named():
    network = Network(BranchingNetwork(), fitted(NearestMean()))
    with pytest.raises(ExportError, match="the backbone BranchingNetwork cannot be exported"):
        export_program(network, samples(3, 2)[0][:, None])


def test_the_example_is_one_that_the_network_takes():
    network = Network(None, fitted(NearestMean()))
    with pytest.raises(ConfigError, match="one sample or more"):
        export_program(network, torch.empty(0, WIDTH))
    with pytest.raises(TypeError, match="expected a tensor"):
        export_program(network, [[0.0] * WIDTH])
    with pytest.raises(ValueError, match=rf"expected \(N, {WIDTH}\)"):
        export_program(network, torch.rand(2, WIDTH + 1))


def test_half_precision_is_refused_where_runtimes_lack_it(tmp_path):
    config = BackboneConfig("mlp", width=8, precision="bfloat16")
    backbone = build_backbone(config, (WIDTH,), seed=0)
    features = backbone.eval()(samples(3, 60)[0]).detach()
    head = NearestMean()
    head.fit(head.new_memory(features.shape[1]).update(features, samples(3, 60)[1]))
    with pytest.raises(ConfigError, match="bfloat16"):
        export_onnx(Network(backbone, head), samples(3, 1)[0], tmp_path / "model.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"needs {library}.*protocl\[export\]"):
        export_onnx(Network(None, fitted(NearestMean())), samples(3, 1)[0], tmp_path / "m.onnx")


def test_a_file_is_whole_or_absent(simple, monkeypatch):
    network, path = simple
    written = path.read_bytes()

    def fail(self, destination, **options) -> None:
        destination.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(network, samples(3, 1)[0], path)
    assert path.read_bytes() == written
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_no_file(simple, tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        export_onnx(simple[0], samples(3, 1)[0], tmp_path)


def test_weights_that_no_file_holds_are_refused(simple, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_LARGEST", 100)
    with pytest.raises(CapacityError, match="at most 2"):
        export_onnx(simple[0], samples(3, 1)[0], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
