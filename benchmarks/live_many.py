"""As many WebRTC sessions at once as the server takes: frames a second of each. One JSON line.

    python benchmarks/live_many.py --size 512 --seconds 60

Every session speaks without end. The clients are aiortc's, in one process, and do not decode; what they
cost is given apart. One session more is asked for and must be refused at once. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

import httpx2 as httpx
from aiortc import RTCPeerConnection, RTCSessionDescription
from live_process import cpu_seconds, demo, serving

SETTLE_S = 8


async def connect(client: httpx.AsyncClient, seed: int) -> tuple[str, RTCPeerConnection]:
    """One session with a client that throws away what it receives."""
    session = (await client.post("/sessions", json={"seed": seed})).json()["id"]
    pc = RTCPeerConnection()
    for kind in ("audio", "video"):
        pc.addTransceiver(kind, direction="recvonly").receiver._enabled = False
    await pc.setLocalDescription(await pc.createOffer())
    offer = {"sdp": pc.localDescription.sdp}
    answer = (await client.post(f"/sessions/{session}/offer", json=offer)).json()["sdp"]
    await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    return session, pc


async def speak(client: httpx.AsyncClient, session: str, speech: bytes) -> None:
    """Something to say, again and again."""
    while True:
        answer = await client.post(f"/sessions/{session}/audio", files={"file": ("s.opus", speech)})
        await asyncio.sleep(answer.json()["seconds"] - 0.5)


async def drawn(client: httpx.AsyncClient, sessions: list[str]) -> dict[str, dict]:
    """The server's account of each."""
    return {s: (await client.get(f"/sessions/{s}")).json() for s in sessions}


async def measure(address: str, pid: int, seconds: float) -> dict:
    """Fill the house, refuse one, count."""
    from visavis.serve.config import ASSETS

    speech = (ASSETS / "demo_speech.opus").read_bytes()
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        limit = (await client.get("/healthz")).json()["limit"]
        pairs = [await connect(client, seed) for seed in range(limit)]
        names = [name for name, _ in pairs]
        talk = [asyncio.ensure_future(speak(client, name, speech)) for name in names]
        await asyncio.sleep(SETTLE_S)
        begin = time.monotonic()
        refused = await client.post("/sessions", json={})
        refusal_ms = 1000 * (time.monotonic() - begin)
        before, spent, start = (
            await drawn(client, names),
            (cpu_seconds(pid), time.process_time()),
            time.monotonic(),
        )
        await asyncio.sleep(seconds)
        after, wall = await drawn(client, names), time.monotonic() - start
        used = cpu_seconds(pid) - spent[0], time.process_time() - spent[1]
        for task in talk:
            task.cancel()
        await asyncio.gather(*(pc.close() for _, pc in pairs))
    fps = [
        (after[n]["rendered"] - before[n]["rendered"])
        / (after[n]["seconds"] - before[n]["seconds"])
        for n in names
    ]
    return {
        "sessions": limit,
        "fps": [round(f, 2) for f in fps],
        "fps_min": round(min(fps), 2),
        "dropped": [after[n]["dropped"] - before[n]["dropped"] for n in names],
        "tiers": [f"{after[n]['tier']} {after[n]['size']}" for n in names],
        "one_more": refused.status_code,
        "retry_after": refused.headers.get("retry-after"),
        "refused_in_ms": round(refusal_ms, 1),
        "server_core_percent": round(100 * used[0] / wall, 1),
        "clients_core_percent": round(100 * used[1] / wall, 1),
    }


def main() -> int:
    """Run; exit 1 when a session falls below 28 frames a second or one more is taken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sessions", type=int, default=0, help="0: what the server measures")
    options = parser.parse_args()
    with serving(*demo(max_sessions=options.sessions, size=options.size)) as (address, pid):
        facts = asyncio.run(measure(address, pid, options.seconds))
    facts = {
        "bench": "live_many",
        "size": options.size,
        "load_average": round(os.getloadavg()[0], 2),
    } | facts
    facts["pass"] = facts["fps_min"] >= 28 and facts["one_more"] == 503
    print(json.dumps(facts))
    return 0 if facts["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
