"""What comes before any request is read: who may ask, how much, and how many at a time."""

from __future__ import annotations

from collections.abc import Collection
from time import perf_counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocl.serve.metrics import Metrics
from protocl.serve.problems import Problem

IN_FLIGHT = 16
MOST_BYTES = 100_000_000
"""Of a request with all its pictures."""
_ANSWERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """Let a request through to ``app``, or answer it at once.

    A page of another site can make a browser send requests here. It can neither read the answers,
    since none allows it, nor send some that are read as ours: under a name of its own that it lets
    point to this machine (DNS rebinding) the ``Host`` is not ours, and else the ``Origin``.

    Args:
        app: the application.
        hosts: names under which it is reached.
        metrics: are told of every answer.
        in_flight: requests with a body that are worked on at a time.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], metrics: Metrics, in_flight: int = IN_FLIGHT
    ) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.metrics = metrics
        self.free = in_flight
        self.in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send, self.metrics)
        try:
            self._require_ours(Headers(scope=scope))
            if scope["method"] != "POST":
                await self.app(scope, receive, answer)
                return
            await self._limited(scope, receive, answer)
        except Problem as problem:
            await problem.response()(scope, receive, answer)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.free:
            raise Problem(
                429, "too_many_requests",
                f"{self.in_flight} requests are being worked on: try again in a second",
                {"Retry-After": "1"},
            )  # fmt: skip
        self.free -= 1
        try:
            await self.app(scope, _bounded(Headers(scope=scope), receive), send)
        finally:
            self.free += 1

    def _require_ours(self, headers: Headers) -> None:
        host = _name(f"//{headers.get('host', '')}")
        if host not in self.hosts:
            raise Problem(
                400, "unknown_host",
                f"Host {headers.get('host', '')!r} is none of ours ({', '.join(sorted(self.hosts))}"
                "): use one of these, or start protocl serve with --allow-host NAME",
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and _name(origin) not in self.hosts:
            raise Problem(
                403, "other_origin",
                f"the page of {origin!r} may not ask here: use the page of this server",
            )  # fmt: skip


class _Answer:
    """Sends an answer with headers that every one has, and counts it."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self.scope, self.send, self.metrics = scope, send, metrics
        self.start = perf_counter()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_ANSWERS)
            route = getattr(self.scope.get("route"), "path", "other")
            seconds = perf_counter() - self.start
            self.metrics.answered(self.scope["method"], route, message["status"], seconds)
        await self.send(message)


def _bounded(headers: Headers, receive: Receive) -> Receive:
    """The body of a request as far as it is not too large."""
    told = headers.get("content-length", "0")
    if told.isdecimal() and int(told) > MOST_BYTES:
        raise _too_large()
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BYTES:
            raise _too_large()
        return message

    return bounded


def _too_large() -> Problem:
    return Problem(
        413, "request_too_large",
        f"a request has at most {MOST_BYTES / 1e6:.0f} MB: send fewer pictures at a time",
        {"Connection": "close"},
    )  # fmt: skip


def _name(address: str) -> str | None:
    """The name of a host, without its port; None for what is no address."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
