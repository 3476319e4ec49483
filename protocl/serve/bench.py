"""A served model beside its bare backbone: eight callers who ask again and again."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from protocl.backbones import BackboneConfig
from protocl.bench.comparison import Size, SpeedComparison, require_equal
from protocl.data.pictures import pixels_of
from protocl.io.provenance import available_cores
from protocl.model.classifier import PrototypeClassifier
from protocl.model.encoder import Encoder
from protocl.serve.server import Settings, serve

CALLERS = 8
ROUNDS = 4
"""In which the two sides take turns."""
TARGET = 2.0
_SIDE = 256
_BOUNDARY = "of-the-benchmark"
_FULL_WIDTH = 512
"""Features from which on a size is that for which targets are stated."""


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Seconds until an answer, and seconds an answer at full load: served, and bare.

    Bare are the passes of the same pictures, decoded and resized before, through the same backbone
    in as many threads as the server reads in.
    """
    full = size.width >= _FULL_WIDTH
    name, requests = ("efficientnet_lite0", 400) if full else ("conv4", 4 * CALLERS)
    pictures = _pictures()
    with tempfile.TemporaryDirectory() as folder:
        model = _model(name, None if full else 16, pictures)
        model.save(Path(folder) / "model")
        with _served(Path(folder) / "model") as link, _bare(model.encoder_) as encode:
            served = [partial(_ask, link, _form(picture)) for picture in pictures]
            bare = [partial(encode, _pixels(model.encoder_, picture)) for picture in pictures]
            difference = _difference(model, link, pictures[0])
            for one in _compared(name, _in_turns(served, bare, requests // ROUNDS)):
                yield replace(one, difference=difference)


def _difference(model: PrototypeClassifier, link: str, picture: Image.Image) -> float:
    """How far served probabilities are from those of the model itself."""
    form = _form(picture)
    (known,) = model.predict_proba([Image.open(_jpeg(picture))])
    here = dict(zip(model.classes_, known, strict=True))
    (asked,) = json.loads(_ask(link, form))["predictions"]
    apart = [abs(one["probability"] - here[one["label"]]) for one in asked["best"]]
    return require_equal("answers of a server", max(apart), tolerance=1e-4)


def _in_turns(
    ours: Sequence[Callable[[], Any]], peer: Sequence[Callable[[], Any]], requests: int
) -> tuple[_Load, _Load]:
    """The load of both sides, after a first round that is not counted."""
    first, second = _Load(), _Load()
    _Load().add(ours, 2 * CALLERS)
    _Load().add(peer, 2 * CALLERS)
    for _ in range(ROUNDS):
        first.add(ours, requests)
        second.add(peer, requests)
    return first, second


def _compared(name: str, loads: tuple[_Load, _Load]) -> Iterator[SpeedComparison]:
    ours, peer = loads
    for what, cost, target in (
        (f"99 of 100 answers at {CALLERS} callers", _Load.late, TARGET),
        (f"median answer at {CALLERS} callers", _Load.median, None),
        (f"an answer at {CALLERS} callers, 1 / throughput", _Load.each, None),
    ):
        yield SpeedComparison(
            case=f"{what}, {name} served", peer_name="bare backbone", ours=cost(ours),
            peer=cost(peer), kind="cost", target=target, threads=1,
        )  # fmt: skip


class _Load:
    """What callers waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.seconds = 0.0

    def add(self, asks: Sequence[Callable[[], Any]], requests: int) -> None:
        """Let the callers ask so many times in all."""
        start = perf_counter()
        with ThreadPoolExecutor(CALLERS) as callers:
            work = [asks[n % len(asks)] for n in range(requests)]
            self.waits += callers.map(_waited, work)
        self.seconds += perf_counter() - start

    def late(self) -> float:
        """The wait that one of a hundred exceeds."""
        return float(np.quantile(self.waits, 0.99))

    def median(self) -> float:
        """The wait that half exceed."""
        return float(np.median(self.waits))

    def each(self) -> float:
        """Seconds an answer."""
        return self.seconds / len(self.waits)


def _waited(ask: Callable[[], Any]) -> float:
    start = perf_counter()
    ask()
    return perf_counter() - start


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["protocl.serve.server"])
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(folder, its), daemon=True)
    process.start()
    its.close()
    try:
        mine.recv()
        yield mine.recv().removeprefix("page: ")
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, pipe: Any) -> None:
    serve(folder, Settings(port=0), pipe.send)


@contextmanager
def _bare(encoder: Encoder) -> Iterator[Callable[[torch.Tensor], Any]]:
    begin = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(available_cores(), initializer=begin) as pool:

        def encode(pixels: torch.Tensor) -> Any:
            return pool.submit(_pass, encoder, pixels).result()

        yield encode


@torch.no_grad()
def _pass(encoder: Encoder, pixels: torch.Tensor) -> Any:
    return encoder.backbone(pixels)


def _pixels(encoder: Encoder, picture: Image.Image) -> torch.Tensor:
    assert encoder.shape is not None
    return pixels_of(picture, encoder.shape[1:])[None]


def _ask(link: str, form: bytes) -> bytes:
    caller = http.client.HTTPConnection(urlsplit(link).netloc)
    kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    caller.request("POST", "/predict", form, kind)
    reply = caller.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"the server answered {reply.status}: {reply.read().decode()}")
    answer = reply.read()
    caller.close()
    return answer


def _jpeg(picture: Image.Image) -> BytesIO:
    file = BytesIO()
    picture.save(file, "JPEG")
    return file


def _form(picture: Image.Image) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="x.jpg"'
    tail = f"\r\n--{_BOUNDARY}--\r\n"
    return head.encode() + b"\r\n\r\n" + _jpeg(picture).getvalue() + tail.encode()


def _pictures() -> list[Image.Image]:
    """Smooth pictures of the size of a small photograph, half of each of two classes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (2 * CALLERS, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((_SIDE, _SIDE)) for each in coarse]


def _model(name: str, size: int | None, pictures: list[Image.Image]) -> PrototypeClassifier:
    backbone = BackboneConfig(name=name, image_size=size)
    labels = ["even", "odd"] * CALLERS
    return PrototypeClassifier("ridge", backbone=backbone, exact=True).fit(pictures, labels)
