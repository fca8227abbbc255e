"""The app: routes, and what they share. ``build_app`` makes it; nothing runs until it is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

import visavis
from visavis.errors import InputError, VisavisError
from visavis.serve import rtc, speech
from visavis.serve.capacity import session_limit
from visavis.serve.config import ServeConfig
from visavis.serve.engine import Engine, LiveSession
from visavis.serve.guard import Guard, Tickets
from visavis.serve.jobs import FORMATS, Jobs, Render
from visavis.serve.library import Library
from visavis.serve.media import run_media
from visavis.serve.metrics import Metrics
from visavis.serve.rtc import Peer
from visavis.serve.signalling import Control, accept
from visavis.serve.talk import NoPlace, run_talk
from visavis.serve.workers import Hire, WorkerGone

log = logging.getLogger("visavis.serve")
STATIC = Path(__file__).parent / "static"
RETRY_S = 5


@dataclass
class Hall:
    """What the routes share."""

    config: ServeConfig
    metrics: Metrics
    engine: Engine
    library: Library
    tickets: Tickets
    jobs: Jobs
    draining: bool = False
    peers: dict[str, Peer] = field(default_factory=dict)
    tasks: set[asyncio.Task] = field(default_factory=set)

    def session(self, name: str) -> LiveSession:
        """By id, or 404."""
        live = self.engine.sessions.get(name)
        if live is None or live.closed.is_set():
            raise HTTPException(404, "no such session; it may have ended")
        return live

    async def place(self, avatar: str | None, seed: int, owner: str) -> LiveSession:
        """Open a session for a client.

        Raises:
            NoPlace: not now, and why.
            VisavisError: the avatar or the models cannot be used.
        """
        engine, most = self.engine, self.config.sessions_per_client
        if self.draining:
            raise self._refuse("draining", "the server is going down")
        if engine.full:
            raise self._refuse("full", f"all {engine.limit} places are taken; try again")
        if sum(s.owner == owner for s in engine.sessions.values()) >= most:
            raise self._refuse("client", f"{most} sessions per client at most")
        avatar = avatar or self.library.shared()[0].id
        self.library.get(avatar)
        try:
            live = await engine.open(avatar, seed, owner)
        except WorkerGone as error:
            raise self._refuse("worker", str(error)) from error
        log.info("session opened", extra={"session": live.id, "avatar": avatar})
        return live

    def _refuse(self, reason: str, text: str) -> NoPlace:
        self.metrics.refused.labels(reason).inc()
        return NoPlace(reason, text)

    def one_place_only(self) -> None:
        """Refuse, with 409, what a later request could not find on another replica."""
        if self.config.one_socket:
            raise HTTPException(409, "this server has several replicas: use the WebSocket /talk")

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether new sessions are welcome, and the facts."""
        drawing = any(worker.ready for worker in self.engine.workers)
        status = "draining" if self.draining else "ok" if drawing else "no drawing process"
        facts = {"sessions": len(self.engine.sessions), "limit": self.engine.limit}
        return status == "ok", {"status": status} | facts

    async def connect(self, live: LiveSession, sdp: str) -> str:
        """Answer an offer; a peer before it is hung up."""
        before = self.peers.pop(live.id, None)
        if before is not None:
            await before.close()
        begin = self.engine.clock.now()
        peer = self.peers[live.id] = Peer(live, self.config)
        answer = await peer.answer(sdp)
        peer.outlet.on_first = lambda now: self.metrics.first_frame.observe((now - begin) / 1e9)
        return answer

    async def close(self, live: LiveSession, why: str = "") -> None:
        """End a session and its peer."""
        peer = self.peers.pop(live.id, None)
        await self.engine.close(live, why)
        if peer is not None:
            await peer.close()
        log.info("session closed", extra={"session": live.id, "why": why or live.error})

    async def reap(self) -> None:
        """End sessions that crashed, whose client is gone, or that are too old; count the queues."""
        while True:
            await asyncio.sleep(0.5)
            now = self.engine.clock.now()
            for live in list(self.engine.sessions.values()):
                gone = live.detached_ns is not None and (
                    now - live.detached_ns > self.config.detach_s * 1e9
                )
                old = now - live.opened_ns > self.config.session_limit_s * 1e9
                if live.closed.is_set() or gone or old:
                    await self.close(live, "no transport" if gone else "time is up" if old else "")
            waiting = sum(s.stats.get("queued_s", 0.0) for s in self.engine.sessions.values())
            self.metrics.queued_speech.set(waiting)

    def spawn(self, work: Any) -> None:
        """Run something alongside; kept until done."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(_note_failure)


def _note_failure(task: asyncio.Task) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.warning("background work failed", extra={"error": repr(task.exception())})


class Refusal(BaseModel):
    """Body of every answer that is no success: the reason, or where a request was malformed."""

    detail: str | list[dict[str, Any]]


REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "model": Refusal}
    for code, text in {
        400: "The body cannot be read",
        401: "A token is needed",
        403: "This origin is not allowed",
        404: "No such thing, or no more",
        408: "The body came too slowly",
        409: "Not now",
        413: "Too large",
        421: "Another host is meant",
        422: "It cannot be used, and why",
        429: "Too many requests",
        503: "Full, or going down; see Retry-After",
    }.items()
}


class NewSession(BaseModel):
    """Body of ``POST /sessions``."""

    model_config = ConfigDict(extra="forbid")

    avatar: str | None = Field(None, max_length=100, description="An id of GET /avatars.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of blinks, glances and head motion.")


class Offer(BaseModel):
    """Body of ``POST /sessions/{id}/offer``."""

    model_config = ConfigDict(extra="forbid")

    sdp: str = Field(max_length=rtc.MAX_SDP)


class Text(BaseModel):
    """Body of ``POST /sessions/{id}/say``."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=speech.TEXT_LIMIT)


def build_app(
    config: ServeConfig,
    *,
    library: Library,
    hire: Hire,
    limit: int,
    render: Render,
) -> FastAPI:
    """The server as an ASGI app.

    Args:
        config: every choice.
        library: avatars on offer.
        hire: see ``workers.Hire``.
        limit: sessions at most; 0 has them measured at the start.
        render: makes a film; see ``jobs.Render``.
    """
    metrics = Metrics()
    engine = Engine(hire, workers=config.workers, limit=limit, metrics=metrics)
    jobs = Jobs(render, config.render_jobs, engine.clock, metrics)
    hall = Hall(config, metrics, engine, library, Tickets(engine.clock), jobs)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        rtc.report_planned_time()
        first = library.shared()[0].id
        await engine.start(first)
        if not limit:
            cost = await engine.workers[0].measure(first)
            engine.limit = session_limit(cost, float(config.fps), config.workers)
            log.info("%d sessions, %.1f core-ms a frame", engine.limit, cost)
        hall.spawn(hall.reap())
        yield
        for live in list(engine.sessions.values()):
            await hall.close(live, "the server is going down")
        for task in list(hall.tasks):
            task.cancel()
        await asyncio.gather(*hall.tasks, return_exceptions=True)
        await engine.stop()
        await asyncio.to_thread(jobs.close)

    app = FastAPI(
        title="visavis",
        version=visavis.__version__,
        lifespan=life,
        redoc_url=None,
        responses=REFUSALS,
    )
    app.state.hall = hall
    app.add_middleware(Guard, config=config, metrics=metrics, clock=engine.clock)
    app.add_exception_handler(VisavisError, _explain)
    _info_routes(app, hall)
    _place_routes(app, hall)
    _talk_routes(app, hall)
    _socket_routes(app, hall)
    _avatar_routes(app, hall)
    _job_routes(app, hall)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def _explain(request: Request, error: Exception) -> JSONResponse:
    status = 422 if isinstance(error, InputError) else 503 if isinstance(error, WorkerGone) else 500
    text = str(error) if status == 422 else "the server cannot do this; see its log"
    if status == 500:
        log.error("request failed", extra={"error": repr(error)})
    return JSONResponse({"detail": text}, status)


def _info_routes(app: FastAPI, hall: Hall) -> None:
    config = hall.config

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/config")
    async def public_config() -> dict[str, Any]:
        """What the page needs to know before it has a token."""
        return {
            "version": visavis.__version__,
            "needs_token": bool(config.token),
            "one_socket": config.one_socket,
            "tts": bool(config.tts),
            "ice_servers": [s.model_dump(exclude_none=True) for s in config.ice_servers]
            if not config.token
            else [],
            "upload_mb": config.upload_mb,
            "size": config.size,
            "fps": float(config.fps),
        }

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """200 while new sessions are welcome, 503 while going down or not able to draw."""
        well, facts = hall.health()
        return JSONResponse(facts, 200 if well else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus exposition."""
        return Response(hall.metrics.text(), media_type="text/plain; version=0.0.4")


def _client(request: Request) -> str:
    return request.client.host if request.client else "?"


def _place_routes(app: FastAPI, hall: Hall) -> None:
    config = hall.config

    @app.post("/sessions", status_code=201, responses={503: {"description": "Full; Retry-After"}})
    async def open_session(request: Request, new: NewSession | None = None) -> dict[str, Any]:
        """A place for one conversation. Its tickets open its WebSockets, once each."""
        hall.one_place_only()
        new = new or NewSession()
        try:
            live = await hall.place(new.avatar, new.seed, _client(request))
        except NoPlace as error:
            raise HTTPException(503, str(error), {"Retry-After": str(RETRY_S)}) from error
        tickets = {kind: hall.tickets.issue(f"{kind} {live.id}") for kind in ("control", "media")}
        ice = [s.model_dump(exclude_none=True) for s in config.ice_servers]
        return {"id": live.id, "tickets": tickets, "ice_servers": ice, "avatar": live.avatar}

    @app.post("/sessions/{name}/tickets")
    async def more_tickets(name: str) -> dict[str, str]:
        """Fresh tickets, to connect again."""
        live = hall.session(name)
        return {kind: hall.tickets.issue(f"{kind} {live.id}") for kind in ("control", "media")}

    @app.get("/sessions/{name}")
    async def session_stats(name: str) -> dict[str, Any]:
        """How it goes."""
        live = hall.session(name)
        return {"id": live.id, "avatar": live.avatar} | live.stats

    @app.delete("/sessions/{name}", status_code=204)
    async def close_session(name: str) -> None:
        """End it."""
        await hall.close(hall.session(name), "closed by the client")


def _talk_routes(app: FastAPI, hall: Hall) -> None:
    config = hall.config

    @app.post("/sessions/{name}/offer")
    async def offer(name: str, body: Offer) -> dict[str, str]:
        """WebRTC offer to answer."""
        return {"type": "answer", "sdp": await hall.connect(hall.session(name), body.sdp)}

    @app.post("/sessions/{name}/say", status_code=202)
    async def say(name: str, body: Text) -> dict[str, float]:
        """Text to be spoken by the configured program."""
        live = hall.session(name)
        pcm, rate = await speech.speak_text(
            body.text, config.tts_command, config.tts_timeout_s, config.sound_limit_s
        )
        hall.spawn(live.say(pcm, rate))
        return {"seconds": len(pcm) / rate}

    @app.post("/sessions/{name}/audio", status_code=202)
    async def play(name: str, file: Annotated[UploadFile, File()]) -> dict[str, float]:
        """A sound file to be spoken."""
        live = hall.session(name)
        data = await file.read()
        pcm, rate = await asyncio.to_thread(speech.decode, data, config.sound_limit_s)
        hall.spawn(live.say(pcm, rate))
        return {"seconds": len(pcm) / rate}

    @app.post("/sessions/{name}/clear", status_code=204)
    async def clear(name: str) -> None:
        """Interrupt."""
        hall.session(name).clear_buffer()


def _socket_routes(app: FastAPI, hall: Hall) -> None:
    @app.websocket("/sessions/{name}/control")
    async def control(socket: WebSocket, name: str) -> None:
        live = await accept(socket, hall, name, "control")
        if live is not None:
            await Control(socket, hall, live).run()

    @app.websocket("/sessions/{name}/media")
    async def media(socket: WebSocket, name: str) -> None:
        live = await accept(socket, hall, name, "media")
        if live is not None:
            await run_media(socket, live, hall.config)

    @app.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await run_talk(socket, hall)


def _avatar_routes(app: FastAPI, hall: Hall) -> None:
    making = asyncio.Semaphore(1)  # one photo at a time: it takes a core for seconds

    @app.get("/avatars")
    async def avatars() -> list[dict[str, object]]:
        """Those for everyone."""
        return [entry.public() for entry in hall.library.shared()]

    @app.post("/avatars", status_code=201)
    async def upload(
        file: Annotated[UploadFile, File(description="JPEG, PNG, WebP or .avatar")],
        consent: Annotated[bool, Form(description="The person shown agreed.")] = False,
        name: Annotated[str, Form(max_length=80)] = "",
    ) -> dict[str, object]:
        """An avatar from a photo; only who has its id can use it, and it lives in memory."""
        hall.one_place_only()
        if not consent:
            raise HTTPException(422, "say that the person shown agreed: consent=true")
        data = await file.read()
        async with making:
            text = "the uploader says that the person shown agreed"
            entry = await asyncio.to_thread(hall.library.upload, data, name, text)
        return entry.public()

    @app.get("/avatars/{name}/image", response_class=Response)
    async def image(name: str) -> Response:
        """A small JPEG."""
        try:
            data = hall.library.get(name).thumbnail
        except VisavisError as error:
            raise HTTPException(404, str(error)) from error
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private"})


def _job_routes(app: FastAPI, hall: Hall) -> None:
    def job_of(name: str) -> Any:
        job = hall.jobs.get(name)
        if job is None:
            raise HTTPException(404, "no such job; films are kept for an hour")
        return job

    @app.post("/render", status_code=202)
    async def render(
        file: Annotated[UploadFile, File(description="A sound file.")],
        avatar: Annotated[str, Form(max_length=100)] = "",
        format: Annotated[str, Form(max_length=8)] = "webm",
    ) -> dict[str, object]:
        """Queue a film."""
        hall.one_place_only()
        if format not in FORMATS:
            raise HTTPException(422, f"format: expected {' or '.join(FORMATS)}")
        entry = hall.library.get(avatar) if avatar else hall.library.shared()[0]
        data = await file.read()
        await asyncio.to_thread(speech.decode, data, hall.config.sound_limit_s)
        job = hall.jobs.add(entry.avatar, data, format)
        if job is None:
            raise HTTPException(503, "the queue is full; try later", {"Retry-After": "30"})
        return job.public()

    @app.get("/render/{name}")
    async def progress(name: str) -> dict[str, object]:
        """How far it is."""
        return job_of(name).public()

    @app.get("/render/{name}/film", response_class=FileResponse)
    async def film(name: str) -> FileResponse:
        """The film."""
        job = job_of(name)
        if job.state != "done":
            raise HTTPException(409, f"the film is {job.state}")
        return FileResponse(job.film, media_type=FORMATS[job.format], filename=job.film.name)

    @app.delete("/render/{name}", status_code=204)
    async def remove(name: str) -> None:
        """Stop and forget it."""
        job_of(name)
        await asyncio.to_thread(hall.jobs.remove, name)


async def drain(app: FastAPI) -> None:
    """Take no new session; return when the last has ended or the time is up."""
    hall: Hall = app.state.hall
    hall.draining = True
    log.info("draining", extra={"sessions": len(hall.engine.sessions)})
    waits = [live.closed.wait() for live in hall.engine.sessions.values()]
    if waits:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waits), hall.config.drain_s)
