"""Who may ask, how much, and what damaged and hostile requests are told."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from protocl.serve import gate, pictures
from protocl.serve.gate import Gate
from protocl.serve.metrics import Metrics
from protocl.serve.pictures import picture_of
from protocl.serve.problems import Problem
from tests.model.changes.test_ledger import X, made
from tests.serve.client import ALLOWED, asking, labels
from tests.serve.shapes import draw, png


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with asking(made(tmp_path / "m")) as client:
        yield client


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[", "127.0.0.2"])
def test_under_another_name_nothing_is_answered(client: TestClient, host: str) -> None:
    for reply in (
        client.get("/classes", headers={"Host": host}),
        client.post("/predict", json={"features": X[0].tolist()}, headers={"Host": host}),
    ):
        assert (reply.status_code, reply.json()["error"]) == (400, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8123", "LOCALHOST"])
def test_under_its_own_it_is(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://["])
def test_pages_of_others_may_not_ask(client: TestClient, origin: str) -> None:
    reply = client.post("/predict", json={"features": X[0].tolist()}, headers={"Origin": origin})
    assert (reply.status_code, reply.json()["error"]) == (403, "other_origin")
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    reply = client.options("/teach", headers=headers)
    assert not any(name.startswith("access-control") for name in reply.headers)
    own = {"Origin": "http://localhost:9"}
    ok = client.post("/predict", json={"features": X[0].tolist()}, headers=own)
    assert ok.status_code == 200
    assert not any(name.startswith("access-control") for name in ok.headers)


@pytest.mark.parametrize("path", ["/teach", "/forget", "/undo"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "},
     {"Authorization": ALLOWED["Authorization"][7:]}, {"Authorization": "Bearer \xff"},
     {"Cookie": f"token={ALLOWED['Authorization'][7:]}"}],
)  # fmt: skip
def test_changing_takes_the_token(client: TestClient, path: str, headers: Any) -> None:
    content = {"class": "a", "features": X[:1].tolist(), "change": "0" * 16}
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    reply = client.post(path, json=content, headers=raw)
    assert (reply.status_code, reply.json()["error"]) == (401, "no_token")
    assert labels(client) == ["a", "b", "c"]
    assert client.get("/health").json()["samples"] == 30


def test_the_seventeenth_request_is_told_to_wait() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        door = Gate(app, ["localhost"], Metrics())
        first = [asyncio.create_task(ask(door)) for _ in range(16)]
        await asyncio.sleep(0)
        refused = [await ask(door) for _ in range(3)]
        go.set()
        return refused, [*await asyncio.gather(*first), await ask(door)]

    refused, answered = asyncio.run(scenario())
    assert refused == [429] * 3
    assert answered == [200] * 17


async def ask(app: Any) -> int:
    """The status of a bare POST."""
    status = []

    async def send(message: Any) -> None:
        status.append(message.get("status"))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers}
    await app(scope, receive, send)
    return int(status[0])


def test_a_request_that_fails_frees_its_place(client: TestClient) -> None:
    for _ in range(20):
        assert client.post("/predict", content=b"{", headers=JSON).status_code == 400
    assert client.post("/predict", json={"features": X[0].tolist()}).status_code == 200


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"x", "text/plain", 415),
        (b"x", "", 415),
        (b"x", "multipart/form-data", 400),
        (b"--b\r\nContent-Disposition: nonsense", "multipart/form-data; boundary=b", 422),
        (b"\r\n--c\r\nx", "multipart/form-data; boundary=b", 400),
    ],
)
def test_nonsense_is_told_what_was_expected(
    client: TestClient, content: bytes, kind: str, status: int
) -> None:
    reply = client.post("/predict", content=content, headers={"Content-Type": kind})
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error", "message"}


def test_too_much_is_refused(client: TestClient, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "MOST_BYTES", 1000)
    reply = client.post("/predict", content=b"x" * 1001, headers=JSON)
    assert (reply.status_code, reply.json()["error"]) == (413, "request_too_large")
    reply = client.post("/predict", content=iter([b"x" * 600] * 2), headers=JSON)  # no length told
    assert (reply.status_code, reply.json()["error"]) == (413, "request_too_large")


def test_too_many_pictures_are_refused(client: TestClient) -> None:
    files = [("files", ("x.png", b"x"))] * 65
    reply = client.post("/predict", files=files)
    assert (reply.status_code, reply.json()["error"]) == (400, "bad_form")


class TestPictures:
    def test_a_whole_one_is_read_in_all_forms(self) -> None:
        picture = draw("ring", 0)
        for form in ("PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"):
            file = BytesIO()
            picture.save(file, form)
            assert picture_of(file.getvalue(), "x").size == picture.size

    @pytest.mark.parametrize("cut", [0, 10, 200, -60])
    def test_a_damaged_one_is_422(self, cut: int) -> None:
        with pytest.raises(Problem) as found:
            picture_of(png(draw("ring", 0))[:cut], "cut.png")
        assert (found.value.status, found.value.error) == (422, "damaged_image")
        assert "cut.png" in str(found.value)

    def test_what_starts_other_programs_is_not_read(self) -> None:
        with pytest.raises(Problem, match="it is no picture"):
            picture_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "x.eps")

    def test_of_more_than_fifty_megapixels_nothing_is_decoded(self, monkeypatch: Any) -> None:
        content = png(draw("ring", 0))
        monkeypatch.setattr("protocl.serve.pictures.read_picture", lambda _: pytest.fail("decoded"))
        for side, megapixels in ((7200, "51.8"), (50_000, "far too many")):
            large = bytearray(content)
            large[16:24] = side.to_bytes(4, "big") * 2
            large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
            with pytest.raises(Problem, match=f"{megapixels} megapixels: expected at") as found:
                picture_of(bytes(large), "large.png")
            assert found.value.status == 413

    def test_of_more_than_twenty_megabytes(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(pictures, "MOST_BYTES", 100)
        with pytest.raises(Problem, match="expected at most"):
            picture_of(png(draw("ring", 0)), "x.png")


def test_our_own_fault_is_no_riddle(client: TestClient, monkeypatch: Any) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr("protocl.serve.service.Service.predict", fails)
    reply = client.post("/predict", json={"features": X[0].tolist()})
    assert reply.status_code == 500
    assert reply.json()["error"] == "our_fault"
    assert "secret" not in reply.text


def test_what_broke_off_is_no_fault_of_ours(client: TestClient) -> None:
    async def scenario() -> int:
        status = []

        async def send(message: Any) -> None:
            status.append(message.get("status"))

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers,
                 "query_string": b"", "scheme": "http", "server": ("localhost", 80)}  # fmt: skip
        await client.app(scope, receive, send)
        return int(status[0])

    assert asyncio.run(scenario()) == 400


def test_what_cannot_be_written_is_said(client: TestClient, monkeypatch: Any) -> None:
    content = {"class": "a", "now": True}

    def full(*args: Any, **more: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("protocl.model.changes.ledger.save_model", full)
    reply = client.post("/forget", json=content, headers=ALLOWED)
    assert (reply.status_code, reply.json()["error"]) == (507, "not_folded")
    assert labels(client) == ["b", "c"]
    monkeypatch.setattr("os.fsync", full)
    reply = client.post("/forget", json={"class": "b"}, headers=ALLOWED)
    assert (reply.status_code, reply.json()["error"]) == (507, "not_written")
    assert labels(client) == ["b", "c"]


def test_no_address_is_a_riddle(client: TestClient) -> None:
    for path in ("/thumbnails/x/y.jpg", "/thumbnails/1/..%2f..%2fmodel.json", "/nowhere"):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/teach", "/forget"])
def test_a_field_that_comes_twice_is_refused(client: TestClient, path: str) -> None:
    features = str(X[:1].tolist()).replace("'", '"')
    twice = '{"class": "a", "class": "b", "features": %s}' % features  # noqa: UP031
    headers = {**ALLOWED, "Content-Type": "application/json"}
    reply = client.post(path, content=twice, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (422, "bad_value")
    assert "class is given more than once" in reply.json()["message"]
    form = client.post(path, data={"class": ["a", "b"]}, headers=ALLOWED)
    assert (form.status_code, form.json()["error"]) == (422, "bad_value")


def test_a_wrong_method_is_called_so(client: TestClient) -> None:
    reply = client.get("/predict")
    assert (reply.status_code, reply.json()["error"]) == (405, "method_not_allowed")
