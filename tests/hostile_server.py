"""The live server on doubles that cost nothing, as a program, for clients that mean harm."""

from __future__ import annotations

import sys

from live_doubles import DoublePipeline, MotionRenderer, no_film

from visavis.avatar import load_avatar
from visavis.serve.app import build_app
from visavis.serve.cli import run
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.library import Library
from visavis.serve.workers import in_thread

if __name__ == "__main__":
    config = ServeConfig.of(
        port=0,
        size=256,
        workers=1,
        token=sys.argv[1] if len(sys.argv) > 1 else "",
        detach_s=5,
        header_timeout_s=1,
        upload_mb=1,
        sound_limit_s=5,
        requests_per_minute=100_000,
        sessions_per_client=10_000,
        render_jobs=10_000,
        tts=f'{sys.executable} -c "raise SystemExit(3)"',
    )
    library = Library(config.size, config.uploads_kept)
    library.share(load_avatar(ASSETS / "demo.avatar"))

    def models(name):
        return DoublePipeline(config.fps, MotionRenderer("mesh", size=32)), ()

    run(config, build_app(config, library=library, hire=in_thread(models), limit=10_000, render=no_film))
