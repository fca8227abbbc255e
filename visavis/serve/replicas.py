"""The app as replicas under Ray Serve: many machines, one address.

Each replica is the whole server: its own drawing processes, models and limit. A conversation is one
open WebSocket, ``/talk``, so what Ray counts as load is conversations. Sound and pictures go by UDP
straight from the replica to the browser; see ``docs/guides/scaling.md``.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from visavis.errors import ConfigError
from visavis.serve.config import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application

log = logging.getLogger("visavis.serve")

NAME = "visavis"
SPARE = 32  # requests besides conversations: the page, its pictures, a socket to be refused
ANY = 1000  # conversations at most where the replica measures its own limit
HEALTH_S = 10.0
OUTLIVE_S = 3600.0  # for the last conversation of a replica that is no longer needed
ROUTER = "visavis.serve.router.LeastBusy"
STORE_BYTES = 100_000_000  # of a Ray started here; messages are small
SHARE = 0.75  # of a replica's places taken when another is started

BuildApp = Callable[[ServeConfig], Any]
"""The server's ASGI app; a function that can be pickled."""


class AvatarReplica:
    """One replica; Ray makes the app here and calls `check_health`."""

    app: Any  # set by ``serve.ingress``

    async def check_health(self) -> None:
        """As ``/healthz``.

        Raises:
            RuntimeError: it is not well; after three times Ray puts another in its place.
        """
        well, facts = self.app.state.hall.health()
        if not well:
            raise RuntimeError(facts["status"])


def replicas_of(text: str) -> tuple[int, int]:
    """``3`` or ``1:8`` to the fewest and the most.

    Raises:
        ConfigError: neither.
    """
    low, colon, high = text.partition(":")
    high = high if colon else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise ConfigError(f"replicas {text[:20]!r}; expected a number, or MIN:MAX as in 1:8")
    return int(low), int(high)


def deployment(config: ServeConfig, build: BuildApp, replicas: tuple[int, int]) -> Application:
    """What Ray Serve runs.

    Args:
        config: of each replica; its ``workers`` are the cores a replica asks for.
        build: makes the app, in the replica.
        replicas: fewest and most; where they differ, the number follows the open conversations.

    Raises:
        ConfigError: Ray Serve is not installed, or the number is to vary and no limit is set.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.serve") is None:
        raise ConfigError("replicas need Ray Serve: pip install 'visavis[serve,scale]'")
    from ray import serve

    config = config.model_copy(update={"one_socket": True})
    low, high = replicas
    scale: dict[str, Any] = {"num_replicas": low}
    if high > low:
        if not config.max_sessions:
            raise ConfigError("replicas that come and go need a limit: set max_sessions")
        scale = {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": max(1, math.floor(SHARE * config.max_sessions)),
            }
        }

    def app() -> Any:  # Ray takes a function only, so no partial
        return build(config)

    return serve.deployment(
        serve.ingress(app)(AvatarReplica),
        name="AvatarReplica",
        max_ongoing_requests=(config.max_sessions or ANY) + SPARE,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=OUTLIVE_S if high > low else config.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config={"request_router_class": ROUTER},
        ray_actor_options={"num_cpus": config.workers},
        **scale,
    ).bind()


def app(args: dict[str, Any]) -> Application:
    """For ``serve run visavis.serve.replicas:app`` and the ``importPath`` of a RayService.

    Args:
        args: fields of `ServeConfig`; ``replicas`` (``"3"``, ``"1:8"``); ``json_log``, ``traces``.
            The token may stand in the environment instead, as ``VISAVIS_TOKEN``.

    Raises:
        ConfigError: a field is unknown or impossible.
    """
    from visavis.serve.config import ASSETS

    given = {"avatars": (ASSETS / "demo.avatar",), "token": os.environ.get("VISAVIS_TOKEN", "")}
    given |= args
    count = replicas_of(str(given.pop("replicas", 1)))
    build = builder(str(given.pop("json_log", "")).lower() == "true", str(given.pop("traces", "")))
    return deployment(ServeConfig.of(**given), build, count)


def builder(json_log: bool = False, traces: str = "") -> BuildApp:
    """Makes the real server's app."""
    return functools.partial(_build, json_log=json_log, traces=traces)


def _build(config: ServeConfig, json_log: bool, traces: str) -> Any:
    from visavis.serve.cli import make_app, set_up

    set_up(json_log, traces)
    return make_app(config, json_log, traces)


def run(config: ServeConfig, build: BuildApp, replicas: tuple[int, int]) -> None:
    """Serve on the cluster of ``RAY_ADDRESS``, or one of this machine's own, until told to stop.

    The first SIGTERM or Ctrl-C lets sessions finish, the second does not.

    Raises:
        ConfigError: see `deployment`; or the replicas did not start.
    """
    if not config.port:
        raise ConfigError("port 0; expected a port, which is the same on every machine")
    target = deployment(config, build, replicas)
    import ray
    from ray import serve

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: pictures would come too late
    cluster = bool(os.environ.get("RAY_ADDRESS"))
    here = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    ray.init(**({} if cluster else here), logging_level="WARNING")
    try:
        serve.start(http_options=_http(config))
        try:
            serve.run(target, name=NAME)
        except RuntimeError as error:
            serve.delete(NAME, _blocking=False)
            raise ConfigError(f"the replicas did not start: {str(error)[:300]}") from error
        scheme = "https" if config.ssl_certfile else "http"
        print(f"visavis is at {scheme}://{config.host}:{config.port}", flush=True)
        _wait_for_signal()
        serve.delete(NAME)
        if not cluster:  # there it may serve others
            serve.shutdown()
    except KeyboardInterrupt:
        log.info("stopped at once")
    finally:
        ray.shutdown()


def _http(config: ServeConfig) -> dict[str, Any]:
    options = {"host": config.host, "port": config.port, "location": "EveryNode"}
    if config.ssl_certfile:
        files = {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
        options |= {name: str(file) for name, file in files.items()}
    return options


def _wait_for_signal() -> None:
    """Until SIGTERM or Ctrl-C; another one raises KeyboardInterrupt."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
