"""What can be asked of a served model, and that it answers as the model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from protocl import PrototypeClassifier, load_model
from protocl.backbones import BackboneConfig, build_backbone
from protocl.model import TrainedClassifier, save_model
from protocl.model.answers import LinearAnswer
from protocl.model.encoder import Encoder
from tests.model.changes.test_ledger import X, Y, made
from tests.serve.client import ALLOWED, asking, forget, labels, teach
from tests.serve.shapes import draw, folder_of, png

KNOWN = ("cross", "house", "ring")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("pictures"), KNOWN, 4)


@pytest.fixture
def shapes(pictures: Path, tmp_path: Path) -> Path:
    """A model of pictures."""
    files = sorted(map(str, pictures.rglob("*.png")))
    backbone = BackboneConfig(name="conv4", image_size=16)
    model = PrototypeClassifier("ridge", backbone=backbone, exact=True)
    model.fit(files, [Path(file).parent.name for file in files]).save(tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Of a model of features."""
    with asking(made(tmp_path / "m")) as client:
        yield client


class TestPredict:
    def test_as_in_python(self, client: TestClient, tmp_path: Path) -> None:
        reply = client.post("/predict", json={"features": X[:4].tolist(), "top": 2})
        assert reply.status_code == 200
        model = load_model(tmp_path / "m")
        for found, expected in zip(
            reply.json()["predictions"], model.guesses(X[:4].astype(float), top=2), strict=True
        ):
            assert found["label"] == expected.best[0].label
            assert found["unknown"] == expected.unknown
            assert [tuple(guess.values()) for guess in found["best"]] == expected.best

    def test_one_vector(self, client: TestClient) -> None:
        reply = client.post("/predict", json={"features": X[0].tolist()})
        assert len(reply.json()["predictions"]) == 1

    def test_the_nearest_prototypes(self, client: TestClient) -> None:
        (found,) = client.post("/predict", json={"features": X[0].tolist()}).json()["predictions"]
        means = {name: X[name == Y].mean(0, dtype=float) for name in "abc"}
        expected = {name: np.linalg.norm(X[0] - mean) for name, mean in means.items()}
        assert [each["label"] for each in found["nearest"]] == sorted(expected, key=expected.get)
        for each in found["nearest"]:
            assert each["distance"] == pytest.approx(expected[each["label"]], abs=1e-4)
            assert each["samples"] == 10

    def test_why(self, client: TestClient, tmp_path: Path) -> None:
        reply = client.post("/explain", json={"features": X[:3].tolist(), "top": 2})
        assert reply.status_code == 200
        model = load_model(tmp_path / "m")
        expected = model.explain(X[:3].astype(float), top=2)
        for found, one in zip(reply.json()["explanations"], expected, strict=True):
            assert [tuple(each.values()) for each in found["prototypes"]] == one.prototypes
            for kind in ("total", "aleatoric", "epistemic", "unknown"):
                assert found[kind] == getattr(one, kind)
            assert len(found["prototypes"]) == 2

    def test_pictures(self, shapes: Path, pictures: Path) -> None:
        files = sorted(pictures.rglob("*.png"))
        with asking(shapes) as client:
            sent = [("files", (file.name, file.read_bytes(), "image/png")) for file in files]
            reply = client.post("/predict", files=sent, data={"top": "3"})
        expected = load_model(shapes).guesses([str(file) for file in files], top=3)
        for file, found, guesses in zip(files, reply.json()["predictions"], expected, strict=True):
            assert found["name"] == file.name
            assert [guess["score"] for guess in found["best"]] == [g.score for g in guesses.best]

    @pytest.mark.parametrize(("threshold", "marked"), [(0.0, True), (1.0, False), (None, False)])
    def test_what_is_unknown_is_marked_from_a_threshold_on(
        self, threshold: float | None, marked: bool, tmp_path: Path
    ) -> None:
        with asking(made(tmp_path / "m"), unknown=threshold) as client:
            reply = client.post("/predict", json={"features": X[0].tolist()}).json()
            assert reply["predictions"][0]["is_unknown"] is marked
            assert client.get("/classes").json()["unknown_threshold"] == threshold

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"features": [[1, 2]]}, "6 features"),
            ({"features": []}, "expected 1 to 1000 rows"),
            ({"features": [[]]}, "expected 1 to 1000 rows"),
            ({"features": 3}, "expected 1 to 1000 rows"),
            ({"features": [[1], [1, 2]]}, "rows of numbers of one length"),
            ({"features": [["x"] * 6]}, "rows of numbers of one length"),
            ({"features": [[None] * 6]}, "NaN"),
            ({"features": [[1e999] * 6]}, "infinity"),
            ({"features": [[[1.0]]]}, "expected 1 to 1000 rows"),
            ({"features": {"a": 1}}, "rows of numbers of one length"),
            ({"features": [[1] * 6], "top": 0}, "top='0'"),
            ({"features": [[1] * 6], "top": "many"}, "top='many'"),
            ({}, "no samples"),
        ],
    )
    def test_what_it_refuses(self, client: TestClient, content: Any, message: str) -> None:
        body = str(content).replace("'", '"').replace("None", "null").replace("inf", "1e999")
        kind = {"Content-Type": "application/json"}
        reply = client.post("/predict", content=body, headers=kind)
        assert reply.status_code == 422, reply.text
        assert message in reply.json()["message"]

    def test_pictures_to_a_model_of_features_and_the_other_way(
        self, client: TestClient, shapes: Path
    ) -> None:
        files = {"files": ("x.png", png(draw("ring", 0)))}
        reply = client.post("/predict", files=files)
        assert (reply.status_code, reply.json()["error"]) == (422, "bad_samples")
        assert "takes vectors as JSON" in reply.json()["message"]
        with asking(shapes) as other:
            reply = other.post("/predict", json={"features": [[1.0]]})
            assert "takes pictures as files" in reply.json()["message"]


class TestChanges:
    def test_taught_forgotten_and_undone(self, client: TestClient, tmp_path: Path) -> None:
        far = (X[:3] + 9).tolist()
        before = client.post("/predict", json={"features": far}).json()
        taught = teach(client, "d", far)
        assert taught.status_code == 200
        assert taught.json()["classes"] == 4
        after = client.post("/predict", json={"features": far}).json()["predictions"]
        assert {found["label"] for found in after} == {"d"}
        assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c", "d"]

        (change,) = client.get("/changes").json()["changes"]
        assert (change["kind"], change["label"], change["samples"]) == ("teach", "d", 3)
        assert 590 < change["seconds_left"] <= 600

        assert forget(client, "d").status_code == 200
        assert labels(client) == ["a", "b", "c"]
        undo = {"change": client.get("/changes").json()["changes"][0]["id"]}
        assert client.post("/undo", json=undo, headers=ALLOWED).status_code == 200
        assert labels(client) == ["a", "b", "c", "d"]
        client.post("/undo", json={"change": taught.json()["change"]}, headers=ALLOWED)
        assert client.post("/predict", json={"features": far}).json() == before
        assert client.get("/changes").json() == {"changes": []}

    def test_samples_are_forgotten(self, client: TestClient) -> None:
        assert forget(client, "a", features=X[:1].astype(float).tolist()).json()["samples"] == 29
        assert forget(client, "a", features=(X[:9] + 9).tolist()).status_code == 422

    def test_forgotten_for_good_leaves_no_trace(self, pictures: Path, shapes: Path) -> None:
        never = {file.name: file.read_bytes() for file in shapes.iterdir()}
        with asking(shapes, thumbnails=True) as client:
            files = [("files", (f"secret{n}.png", png(draw("star", n)))) for n in range(3)]
            form = {"class": "geheim/<b>"}
            taught = client.post("/teach", files=files, data=form, headers=ALLOWED)
            assert taught.status_code == 200, taught.text
            found = client.post("/predict", files=files[:1]).json()["predictions"][0]
            (shown,) = [each for each in found["nearest"] if each["label"] == "geheim/<b>"]
            picture = client.get(shown["thumbnail"])
            assert picture.headers["content-type"] == "image/jpeg"
            features = load_model(shapes).encoder_([draw("star", 0)]).numpy()
            traces = [picture.content, b"geheim", taught.json()["change"].encode()]
            assert all(holds(shapes, trace) for trace in traces)

            assert forget(client, "geheim/<b>").status_code == 200
            assert client.get(shown["thumbnail"]).status_code == 200  # it can be undone
            assert forget(client, "geheim/<b>").status_code == 404
            undo = {"change": client.get("/changes").json()["changes"][0]["id"]}
            assert client.post("/undo", json=undo, headers=ALLOWED).status_code == 200

            reply = forget(client, "geheim/<b>", now=True)
            assert reply.json()["change"] is None
            assert client.get("/changes").json() == {"changes": []}
            assert client.get(shown["thumbnail"]).status_code == 404
            assert not any(holds(shapes, trace) for trace in [*traces, features.tobytes()])
        assert {file.name: file.read_bytes() for file in shapes.iterdir()} == never

    def test_thumbnails_only_where_they_are_allowed(self, shapes: Path) -> None:
        files = [("files", ("star.png", png(draw("star", 0))))]
        with asking(shapes) as client:
            client.post("/teach", files=files, data={"class": "star"}, headers=ALLOWED)
            found = client.post("/predict", files=files).json()["predictions"][0]
            assert {each["thumbnail"] for each in found["nearest"]} == {None}
        assert not (shapes / "thumbnails").exists()

    @pytest.mark.parametrize(
        "name",
        ["ä ö/ü", "<script>alert(1)</script>", "x" * 1000, "日本", "a\u200db", "../../x", "NaN"],
    )
    def test_names_of_all_sorts(self, client: TestClient, name: str, tmp_path: Path) -> None:
        assert teach(client, name, [[9.0] * 6] * 2).status_code == 200
        assert name in labels(client)
        assert forget(client, name, now=True).status_code == 200
        assert labels(client) == ["a", "b", "c"]

    @pytest.mark.parametrize("name", ["", "  ", "x" * 1001, "a\nb", "\ud800", None, 1.5, 3, ["a"]])
    def test_what_is_no_name(self, client: TestClient, name: Any) -> None:
        reply = teach(client, name, [[9.0] * 6])
        assert reply.status_code == 422, reply.text
        assert labels(client) == ["a", "b", "c"]

    def test_numbers_as_labels(self, tmp_path: Path) -> None:
        PrototypeClassifier("nearest_mean").fit(X[:4], [3, 5, 3, 5]).save(tmp_path / "m")
        with asking(tmp_path / "m") as client:
            for label in (7, "8"):
                assert teach(client, label, X[:1].tolist()).status_code == 200
            assert teach(client, "cat", X[:1].tolist()).status_code == 422
            assert teach(client, 2**70, X[:1].tolist()).status_code == 422
            assert forget(client, "3").status_code == 200
            assert labels(client) == [5, 7, 8]


class TestSizes:
    def test_no_class_then_one(self, client: TestClient) -> None:
        for name in "abc":
            forget(client, name, now=True)
        reply = client.post("/predict", json={"features": X[0].tolist()})
        assert (reply.status_code, "no class is known yet" in reply.text) == (409, True)
        assert client.get("/health").json() == {"status": "ok", "classes": 0, "samples": 0}
        assert teach(client, "z", X[:3].tolist()).status_code == 200
        (found,) = client.post("/predict", json={"features": X[0].tolist()}).json()["predictions"]
        assert (found["label"], found["unknown"], found["is_unknown"]) == ("z", None, False)

    def test_a_thousand_classes(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(1000, 8))
        model = PrototypeClassifier("nearest_mean", forgettable=False)
        model.fit(x, [f"class {n:04d}" for n in range(1000)]).save(tmp_path / "m")
        with asking(tmp_path / "m") as client:
            content = {"features": x[[7, 700]].tolist(), "top": 1000}
            found = client.post("/predict", json=content).json()["predictions"]
            assert [each["label"] for each in found] == ["class 0007", "class 0700"]
            assert len(found[0]["best"]) == 1000
            assert len(labels(client)) == 1000
            reply = forget(client, "class 0007")
            assert (reply.status_code, "give the samples" in reply.text) == (422, True)


def test_a_trained_model_answers_and_learns_nothing(tmp_path: Path) -> None:
    network = build_backbone(BackboneConfig(name="mlp", width=5), (6,), 0).eval()
    answer = LinearAnswer.of(torch.nn.Linear(network.feature_dim, 2))
    model = TrainedClassifier(answer, np.array(["x", "y"]), Encoder(network, (6,)))
    save_model(model, tmp_path / "m")
    with asking(tmp_path / "m") as client:
        known = client.get("/classes").json()
        assert (known["takes"], known["width"], known["learns"]) == ("features", 6, False)
        found = client.post("/predict", json={"features": X[:2].tolist()}).json()["predictions"]
        assert [each["label"] for each in found] == model.predict(X[:2]).tolist()
        assert found[0]["nearest"] == []
        assert teach(client, "x", X[:1].tolist()).status_code == 409
        assert client.get("/changes").json() == {"changes": []}
        assert client.get("/health").json()["samples"] is None


def test_what_is_measured(client: TestClient) -> None:
    client.post("/predict", json={"features": X[:3].tolist()})
    client.post("/predict", json={"features": "x"})
    teach(client, "secret class", X[:2].tolist())
    text = client.get("/metrics").text
    for line in (
        "protocl_predictions_total 3.0",
        'protocl_requests_total{method="POST",route="/predict",status="200"} 1.0',
        'protocl_requests_total{method="POST",route="/predict",status="422"} 1.0',
        'protocl_request_seconds_count{method="POST",route="/teach"} 1.0',
        "protocl_best_probability_count 3.0",
        "protocl_unknown_probability_count 3.0",
        'protocl_best_score{quantile="0.5"}',
        'protocl_changes_total{kind="teach"} 1.0',
        "protocl_classes 4.0",
        "protocl_samples 32.0",
    ):
        assert line in text
    assert "secret" not in text


def test_openapi_names_every_route_and_what_it_takes(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/health", "/classes", "/changes", "/metrics", "/thumbnails/{class_id}/{name}", "/predict",
        "/explain", "/teach", "/forget", "/undo",
    }  # fmt: skip
    body = described["paths"]["/teach"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert "class" in body["multipart/form-data"]["schema"]["properties"]
    for page in ("/docs", "/redoc"):  # they would load what another server sends
        assert client.get(page).status_code == 404


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/page.css", "/page.js"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert "//" not in reply.text.replace("// ", "")
        assert "default-src 'none'" in reply.headers["content-security-policy"]


def holds(folder: Path, trace: bytes) -> bool:
    """Whether a file in a folder, or its name, has these bytes."""
    return any(
        trace in file.read_bytes() or trace in str(file).encode()
        for file in folder.rglob("*")
        if file.is_file()
    )
