"""Every choice of the server, made once at the edge."""

from __future__ import annotations

import ipaddress
import shlex
from fractions import Fraction
from pathlib import Path

from pydantic import Field, model_validator

from visavis.config import Config

ASSETS = Path(__file__).parents[1] / "assets"


class IceServer(Config):
    """One STUN or TURN server, as browsers name its fields."""

    urls: str
    username: str | None = None
    credential: str | None = None


class ServeConfig(Config):
    """Unknown keys are errors.

    Attributes:
        avatars: files and folders of ``.avatar`` files to offer; the demo's where empty.
        token: what clients must present; may be empty on a loopback host only.
        max_sessions: 0 asks a benchmark at the start.
        workers: threads that draw; one per core is best.
        tts: command that reads text on stdin and writes sound on stdout (WAV or any media), run as
            a program of its own, never through a shell; ``{out}`` names a file it writes instead.
        allowed_origins: web origins besides the server's own; behind a proxy, the public one.
        articulation, liveliness: how far mouth and head go; see `visavis.pipeline.PipelineConfig`.
        margin_ms: how long a picture and its sound wait to be shown, for even pacing.
        detach_s: a session without a transport is closed after this long.
        one_socket: clients must do all over ``/talk``: another request may reach another replica.
    """

    host: str = "127.0.0.1"
    port: int = Field(8400, ge=0, le=65535)
    token: str = ""
    avatars: tuple[Path, ...] = ()
    fps: Fraction = Fraction(30)
    size: int = Field(512, ge=256, le=1024, multiple_of=2)
    tier: str = "patch"
    lookahead_ms: int = 80
    articulation: float = Field(1.0, ge=0, le=2)
    liveliness: float = Field(1.0, ge=0, le=2)
    max_sessions: int = Field(0, ge=0, le=1000)
    sessions_per_client: int = Field(4, ge=1)
    workers: int = Field(2, ge=1, le=64)
    ice_servers: tuple[IceServer, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    tts: str = ""
    tts_timeout_s: float = 20.0
    margin_ms: int = Field(15, ge=0, le=500)
    detach_s: float = Field(15.0, gt=0)
    session_limit_s: float = Field(24 * 3600.0, gt=0)
    header_timeout_s: float = Field(10.0, gt=0)
    drain_s: float = Field(20.0, ge=0)
    upload_mb: int = Field(20, ge=1, le=500)
    uploads_kept: int = Field(64, ge=0)
    sound_limit_s: int = Field(600, ge=1)
    render_jobs: int = Field(8, ge=0)
    requests_per_minute: int = Field(240, ge=1)
    jpeg_quality: int = Field(80, ge=10, le=95)
    one_socket: bool = False
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None

    @model_validator(mode="after")
    def _safe(self) -> ServeConfig:
        if not self.token and not is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached by others: set a token")
        if self.token and len(self.token) < 16:
            raise ValueError("the token is short; expected 16 characters or more")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("TLS needs a certificate and its key")
        return self

    @property
    def tts_command(self) -> list[str]:
        """The words of ``tts``."""
        return shlex.split(self.tts)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
