"""Two replicas of the live server on doubles, as a program: prints its address."""

from __future__ import annotations

import os
import socket

from live_doubles import live_app

from visavis.avatar import load_avatar
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.replicas import run


class Marked:
    """ASGI middleware: the answer to a WebSocket says which process took it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def tell(message):
            if message["type"] == "websocket.accept":
                pid = (b"x-pid", str(os.getpid()).encode())
                message = message | {"headers": [*message.get("headers", []), pid]}
            await send(message)

        await self.app(scope, receive, tell)


def build(config):
    """`BuildApp`."""
    avatar = load_avatar(ASSETS / "demo.avatar")
    app = live_app(config, avatar, limit=config.max_sessions, processes=True)
    app.add_middleware(Marked)
    return app


def free_port():
    """One that nobody uses at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    from ray_server import build as named  # replicas import it; they cannot import __main__

    config = ServeConfig.of(
        port=free_port(),
        size=256,
        workers=1,
        max_sessions=2,
        sessions_per_client=9,
        detach_s=60,
        drain_s=1,
    )
    run(config, named, (2, 2))
