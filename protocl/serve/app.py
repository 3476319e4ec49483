"""The routes: each asks the service, in a thread of its own, and words what it says."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from protocl import __version__
from protocl.model.changes.change import Change
from protocl.model.guesses import Guesses
from protocl.open_world.explanation.explanation import Explanation
from protocl.serve import answers
from protocl.serve.asked import Asked, asked
from protocl.serve.gate import Gate
from protocl.serve.metrics import Metrics
from protocl.serve.problems import Problem, as_problems
from protocl.serve.service import Neighbouring, Service
from protocl.serve.threads import Threads

logger = logging.getLogger(__name__)

T = TypeVar("T")
FOLD_SECONDS = 20.0
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_FILES = {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}}
_VECTORS = {"features": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}}
_CLASS = {"class": {"type": "string"}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Refusal} for status in (400, 401, 403, 404, 408, 409, 413, 422, 429)
}


def application(service: Service, threads: Threads, *, token: str, hosts: Collection[str]) -> Gate:
    """The service as an ASGI application.

    Args:
        service: what is served.
        threads: in which it reads and writes.
        token: of those who may change the model.
        hosts: names under which it is reached.
    """
    metrics = Metrics()
    routes = Routes(service, threads, metrics, token)
    app = FastAPI(
        title="protocl", version=__version__, docs_url=None, redoc_url=None,
        lifespan=routes.lifespan, responses=_REFUSALS,
    )  # fmt: skip
    routes.add_to(app)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _bad_address)
    app.add_exception_handler(Exception, _our_fault)
    return Gate(app, hosts, metrics)


class Routes:
    """What can be asked.

    Args:
        service, threads, token: as for :func:`application`.
        metrics: count what was answered.
    """

    def __init__(self, service: Service, threads: Threads, metrics: Metrics, token: str) -> None:
        self.service, self.threads, self.metrics, self.token = service, threads, metrics, token

    def add_to(self, app: FastAPI) -> None:
        """Declare the routes."""
        for path in _PAGE:
            app.get(path, include_in_schema=False)(_page(path))
        app.get("/health")(self.health)
        app.get("/classes")(self.classes)
        app.get("/changes")(self.changes)
        app.get("/metrics", response_class=PlainTextResponse)(self.prometheus)
        app.get("/thumbnails/{class_id}/{name}", response_class=FileResponse)(self.thumbnail)
        app.post("/predict", openapi_extra=_body(_VECTORS | _TOP, _FILES | _TOP))(self.predict)
        app.post("/explain", openapi_extra=_body(_VECTORS | _TOP, _FILES | _TOP))(self.explain)
        app.post("/teach", openapi_extra=_body(_CLASS | _VECTORS, _CLASS | _FILES))(self.teach)
        app.post("/forget", openapi_extra=_body(_CLASS | _NOW | _VECTORS, _CLASS | _NOW | _FILES))(
            self.forget
        )
        app.post("/undo", openapi_extra=_body({"change": {"type": "string"}}))(self.undo)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Fold changes while the server runs."""
        self._note()
        folding = asyncio.create_task(self._fold_now_and_then())
        yield
        folding.cancel()
        self.threads.close()

    # -- reading ----------------------------------------------------------------------------

    async def health(self) -> answers.Health:
        """Whether the server is there, and how much it knows."""
        state = self.service.state
        return answers.Health(status="ok", classes=len(state.known.classes_), samples=state.samples)

    async def classes(self) -> answers.Known:
        """The classes, and what can be asked of the model."""
        service, state = self.service, self.service.state
        known = state.known
        ids = getattr(known, "ids_", None)
        counts = [None] * len(known.classes_) if ids is None else [
            state.counts[id_] for id_ in ids.tolist()
        ]  # fmt: skip
        return answers.Known(
            name=service.name,
            takes="pictures" if service.takes_pictures else "features",
            width=service.width,
            learns=service.ledger is not None,
            forgets_classes=service.ledger is not None and service.ledger.forgets_classes,
            unknown_threshold=service.threshold,
            unknown_by=getattr(known, "unknown_score", None),
            unknown_note=getattr(known, "unknown_note", ""),
            classes=[
                answers.KnownClass(label=label, samples=count)
                for label, count in zip(known.classes_.tolist(), counts, strict=True)
            ],
        )

    async def changes(self) -> answers.OpenChanges:
        """Changes that can be undone, the last first."""
        ledger = self.service.ledger
        found = [] if ledger is None else await self.threads.read(ledger.changes)
        return answers.OpenChanges(changes=[self._open(change) for change in found])

    async def prometheus(self) -> PlainTextResponse:
        """Counts, latencies and the distribution of scores, for Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def thumbnail(self, class_id: int, name: str) -> FileResponse:
        """A picture that was taught, where the owner allows it."""
        ledger = self.service.ledger
        file = None
        if ledger is not None and self.service.shows_thumbnails:
            file = ledger.thumbnails.file(class_id, name)
        if file is None:
            raise Problem(404, "not_found", "there is no such picture")
        return FileResponse(file, media_type="image/jpeg")

    async def predict(self, request: Request) -> answers.Predictions:
        """The best classes of pictures, or of vectors of features, and the nearest prototypes."""
        wish = await asked(request)
        top = wish.number("top", 5, 1000)
        names, guesses, nearest = await self._read(lambda: self._predicted(wish, top))
        marked = [self.service.marked(each) for each in guesses]
        self.metrics.predicted(guesses, marked)
        return answers.Predictions(
            predictions=[
                _prediction(*one) for one in zip(names, guesses, nearest, marked, strict=True)
            ]
        )

    async def explain(self, request: Request) -> answers.Explanations:
        """Why pictures, or vectors of features, are answered so."""
        wish = await asked(request)
        top = wish.number("top", 5, 1000)
        names, found = await self._read(lambda: self._explained(wish, top))
        return answers.Explanations(
            explanations=[_explanation(*one) for one in zip(names, found, strict=True)]
        )

    # -- writing ----------------------------------------------------------------------------

    async def teach(self, request: Request) -> answers.Changed:
        """Add samples to a class, known or new. Takes the token."""
        wish = await self._allowed(request)
        label = wish.label(self.service.state.known.classes_)
        features, samples = await self._read(lambda: self._encoded(wish))
        change = await self._write(lambda: self.service.teach(label, features, samples))
        return self._changed(change)

    async def forget(self, request: Request) -> answers.Changed:
        """Take samples out of a class, or all of it; ``now``: with no way back. Takes the token."""
        wish = await self._allowed(request)
        label, now = wish.label(self.service.state.known.classes_), wish.flag("now")
        features = None
        if wish.has_samples:
            features, _ = await self._read(lambda: self._encoded(wish))
        change = await self._write(lambda: self.service.forget(label, features, now=now))
        return self._changed(change, can_be_undone=not now)

    async def undo(self, request: Request) -> answers.Changed:
        """Be as if a change of the last minutes had never been made. Takes the token."""
        wish = await self._allowed(request)
        change_id = wish.text("change")
        await self._write(lambda: self.service.undo(change_id))
        return self._changed(Change("undo"), can_be_undone=False)

    async def _allowed(self, request: Request) -> Asked:
        """What a request asks that may change the model."""
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise Problem(
                401, "no_token",
                "changing the model takes its token: open the link that the server printed when "
                "it started, or send the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        with as_problems():
            self.service.require_learner()
        return await asked(request)

    def _changed(self, change: Change, *, can_be_undone: bool = True) -> answers.Changed:
        self.metrics.changed(change.kind)
        self._note()
        state, ledger = self.service.state, self.service.require_learner()
        return answers.Changed(
            change=change.id if can_be_undone else None,
            classes=len(state.known.classes_),
            samples=state.samples or 0,
            undo_seconds=ledger.undo_seconds if can_be_undone else 0.0,
        )

    def _note(self) -> None:
        state = self.service.state
        self.metrics.knows(len(state.known.classes_), state.samples or 0)

    # -- in threads -------------------------------------------------------------------------

    def _predicted(
        self, wish: Asked, top: int
    ) -> tuple[list[str], list[Guesses], list[list[Neighbouring]]]:
        names, samples = wish.samples()
        return names, *self.service.predict(samples, top)

    def _explained(self, wish: Asked, top: int) -> tuple[list[str], list[Explanation]]:
        names, samples = wish.samples()
        return names, self.service.explain(samples, top)

    def _encoded(self, wish: Asked) -> tuple[Any, Any]:
        _, samples = wish.samples()
        return self.service.features(samples), samples

    async def _read(self, ask: Callable[[], T]) -> T:
        with as_problems():
            return await self.threads.read(ask)

    async def _write(self, ask: Callable[[], T]) -> T:
        with as_problems():
            return await self.threads.write(ask)

    async def _fold_now_and_then(self) -> None:
        ledger = self.service.ledger
        while ledger is not None:
            try:
                await self.threads.write(ledger.fold)
            except Exception:
                logger.exception("changes could not be folded; they stay in the journal")
            await asyncio.sleep(FOLD_SECONDS)

    def _open(self, change: Change) -> answers.OpenChange:
        undo_seconds = self.service.require_learner().undo_seconds
        return answers.OpenChange(
            id=change.id, kind=change.kind, label=change.label,
            samples=None if change.features is None else len(change.features),
            seconds_left=max(0.0, change.time + undo_seconds - time.time()),
        )  # fmt: skip


_TOP = {"top": {"type": "integer", "default": 5}}
_NOW = {"now": {"type": "boolean", "default": False}}


def _body(json: dict[str, Any], form: dict[str, Any] | None = None) -> dict[str, Any]:
    """What OpenAPI says of a request: JSON, or a form."""
    kinds = {"application/json": json} | ({"multipart/form-data": form} if form else {})
    content = {
        kind: {"schema": {"type": "object", "properties": fields}} for kind, fields in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def _page(path: str) -> Callable[[], Any]:
    name, kind = _PAGE[path]
    content = files("protocl.serve").joinpath("page", name).read_bytes()

    async def page() -> Response:
        return Response(content, headers={"Content-Type": kind})

    return page


def _prediction(
    name: str, guesses: Guesses, nearest: list[Neighbouring], is_unknown: bool
) -> answers.Prediction:
    best = [
        answers.ClassGuess(label=each.label, score=each.score, probability=each.probability)
        for each in guesses.best
    ]
    return answers.Prediction(
        name=name, label=best[0].label, is_unknown=is_unknown, unknown=guesses.unknown,
        unknown_by=_unknown_by(guesses), best=best,
        nearest=[answers.Neighbour(**vars(each)) for each in nearest],
    )  # fmt: skip


def _explanation(name: str, found: Explanation) -> answers.Explained:
    reasons = [answers.Reason(**each._asdict()) for each in found.prototypes]
    said = found._asdict() | {"prototypes": reasons, "unknown_by": _unknown_by(found)}
    del said["samples"], said["verdict"]
    return answers.Explained(name=name, **said)


def _unknown_by(found: Guesses | Explanation) -> answers.UnknownBy | None:
    return None if found.verdict is None else answers.UnknownBy(**found.verdict._asdict())


async def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return error.response()


async def _http_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: see GET /openapi.json for what can be asked"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    return Problem(error.status_code, code, message).response()


async def _bad_address(request: Request, error: Exception) -> JSONResponse:
    return Problem(404, "not_found", "there is nothing at this address").response()


async def _our_fault(request: Request, error: Exception) -> JSONResponse:
    """Starlette logs the error, with its traceback, and this is what the caller sees."""
    return Problem(
        500, "our_fault", "the server failed: the error is in its log, please report it"
    ).response()
