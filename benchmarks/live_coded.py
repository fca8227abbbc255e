"""The real server with marks in what it sends, see `live_marks.py`.

    python benchmarks/live_coded.py --size 512 --tier patch

Prints the address. For `live_browser.py`.
"""

from __future__ import annotations

import argparse

from live_marks import CodedOutlet

from visavis.serve import rtc
from visavis.serve.cli import make_app, run
from visavis.serve.config import ASSETS, ServeConfig


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--sessions", type=int, default=2)
    options = parser.parse_args()
    rtc.RtcOutlet = CodedOutlet
    config = ServeConfig.of(
        port=0,
        avatars=(ASSETS / "demo.avatar",),
        size=options.size,
        tier=options.tier,
        max_sessions=options.sessions,
        sessions_per_client=options.sessions,
        requests_per_minute=100_000,
    )
    run(config, make_app(config))


if __name__ == "__main__":
    main()
