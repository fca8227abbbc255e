"""Who may ask, how often and how much: token, tickets, origin, rates, sizes, headers."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

from visavis.clock import Clock
from visavis.serve.config import ServeConfig, is_loopback
from visavis.serve.metrics import Metrics

OPEN = ("/", "/healthz", "/config", "/static/", "/favicon.ico")
TICKET_S = 60
BODY_TIMEOUT_S = 20.0
CLIENTS_KEPT = 10_000
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; "
        "img-src 'self' blob: data:; media-src 'self' blob: mediastream:; worker-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; connect-src 'self'; "
    "img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
)


def right_token(given: str, token: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), token.encode())


class Tickets:
    """One-time passes for WebSockets, which cannot carry a token in a browser."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._open: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def issue(self, purpose: str) -> str:
        """A ticket good once, for a minute."""
        now = self._clock.now()
        while self._open and next(iter(self._open.values()))[1] < now:
            self._open.popitem(last=False)
        while len(self._open) >= CLIENTS_KEPT:
            self._open.popitem(last=False)
        ticket = secrets.token_urlsafe(24)
        self._open[ticket] = (purpose, now + TICKET_S * 1_000_000_000)
        return ticket

    def use(self, ticket: str, purpose: str) -> bool:
        """Whether it is good; a second use is not."""
        meant, until = self._open.pop(ticket, ("", 0))
        return meant == purpose and self._clock.now() <= until


class Rates:
    """A bucket of requests per client, refilled evenly; the number of clients is bounded."""

    def __init__(self, per_minute: int, clock: Clock):
        self._per_minute, self._clock = per_minute, clock
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def allow(self, client: str) -> bool:
        """Count one request."""
        now = self._clock.now()
        level, then = self._clients.pop(client, (float(self._per_minute), now))
        level = min(self._per_minute, level + (now - then) * self._per_minute / 60e9)
        self._clients[client] = (max(level - 1, 0.0), now)
        while len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)
        return level >= 1


class TooLarge(Exception):
    """A body over the limit, found while it was read."""


class Guard:
    """ASGI middleware around the whole app.

    Args:
        app: what it guards.
        config: token, origins, limits.
        metrics: where refusals are counted.
        clock: of the rates.
    """

    def __init__(self, app: Any, config: ServeConfig, metrics: Metrics, clock: Clock):
        self._app, self._config, self._metrics = app, config, metrics
        self._rates = Rates(config.requests_per_minute, clock)
        self._limit = config.upload_mb << 20
        self._names = {urlsplit(origin).hostname for origin in config.allowed_origins}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await self._refuse(scope, receive, send, *refusal)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    def _refusal(self, scope: dict, headers: dict[str, str]) -> tuple[int, str] | None:
        path, host = scope["path"], headers.get("host", "")
        client = scope["client"][0] if scope.get("client") else "?"
        name = urlsplit(f"//{host}").hostname or ""
        if is_loopback(self._config.host) and not is_loopback(name) and name not in self._names:
            return 421, f"host {host[:60]!r} is not this machine"  # DNS rebinding
        origin = headers.get("origin")
        if origin and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
            same = urlsplit(origin).netloc == host
            if not same and origin not in self._config.allowed_origins:
                return 403, "this origin is not allowed"
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            if not self._rates.allow(client):
                return 429, "too many requests; wait a moment"
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > self._limit:
                return 413, f"at most {self._config.upload_mb} MB are taken"
        if scope["type"] == "websocket":
            return None if self._rates.allow(client) else (429, "too many requests")
        if not self._config.token or path in OPEN or path.startswith("/static/"):
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if right_token(given, self._config.token):
            return None
        return 401, "a token is needed: Authorization: Bearer ..."

    async def _http(self, scope: dict, receive: Any, send: Any) -> None:
        taken, begun = 0, False
        refusal: tuple[int, str] | None = None  # found while the body was read

        async def limited() -> dict:
            nonlocal taken, refusal
            if begun:
                return await receive()  # only a disconnect can come
            try:
                message = await asyncio.wait_for(receive(), BODY_TIMEOUT_S)
            except TimeoutError:
                refusal = 408, "the request came too slowly"
                raise
            taken += len(message.get("body", b""))
            if taken > self._limit:
                refusal = 413, f"at most {self._config.upload_mb} MB are taken"
                raise TooLarge
            return message

        async def dressed(message: dict) -> None:
            nonlocal begun
            if refusal and not begun:
                return  # FastAPI makes a 400 of whatever fails while it reads a form
            if message["type"] == "http.response.start":
                begun = True
                own = dict(HEADERS)
                if scope["path"] == "/docs":
                    own["content-security-policy"] = DOCS_POLICY
                have = {k.lower() for k, _ in message.get("headers", [])}
                extra = [(k.encode(), v.encode()) for k, v in own.items() if k.encode() not in have]
                message = message | {"headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            await self._app(scope, limited, dressed)
        except (TooLarge, TimeoutError):
            if not refusal:
                raise
        if refusal and not begun:
            await self._refuse(scope, receive, send, *refusal)

    async def _refuse(self, scope: dict, receive: Any, send: Any, status: int, why: str) -> None:
        self._metrics.requests.labels(str(status)).inc()
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4000 + status, "reason": why})
            return
        headers = {**HEADERS, "content-type": "application/json"}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status == 429:
            headers["retry-after"] = "5"
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": json.dumps({"detail": why}).encode()})
