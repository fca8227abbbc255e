"""Sessions opened and killed at random points: what the server keeps of them. One JSON line.

python benchmarks/live_churn.py --sessions 500
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path

import httpx2 as httpx
from live_process import demo, family, rss, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


def held(pid: int) -> dict[str, int]:
    """Memory, processes, threads and open files of the server."""
    roots = [Path(f"/proc/{one}") for one in family(pid)]
    return {
        "rss_mb": rss(pid) >> 20,
        "processes": len(roots),
        "threads": sum(len(list((root / "task").iterdir())) for root in roots),
        "files": sum(len(list((root / "fd").iterdir())) for root in roots),
    }


async def one(client: httpx.AsyncClient, address: str, chance: random.Random) -> int:
    """A session that ends badly somewhere; 1 when it was refused."""
    answer = await client.post("/sessions", json={"seed": chance.randrange(2**32)})
    if answer.status_code != 201:
        return 1
    session = answer.json()
    place = address.replace("http", "ws") + f"/sessions/{session['id']}"
    kind = chance.choice(("none", "control", "media", "media"))
    if kind != "none":
        passes = ["visavis.v1", f"ticket.{session['tickets'][kind]}"]
        try:
            socket = await connect(f"{place}/{kind}", subprotocols=passes)
        except InvalidStatus:
            return 0  # a slow machine: closed for want of a transport before this one came
        if kind == "media":
            await socket.send(bytes(32_000))
        await asyncio.sleep(chance.random() * 0.2)
        if chance.random() < 0.5:
            socket.transport.abort()
        else:
            await socket.close()
    if chance.random() < 0.7:
        await client.delete(f"/sessions/{session['id']}")
    return 0


async def churn(address: str, pid: int, count: int) -> dict:
    """All of them, four at a time."""
    chance = random.Random(0)
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:

        async def some(n: int) -> int:
            refused = done = 0
            while done < n:
                got = sum(await asyncio.gather(*(one(client, address, chance) for _ in range(4))))
                refused, done = refused + got, done + 4 - got
                if got:
                    await asyncio.sleep(0.3)
            return refused

        async def empty() -> None:
            while (await client.get("/healthz")).json()["sessions"]:
                await asyncio.sleep(0.2)

        await some(40)  # warm: caches and the executor's threads are there
        await empty()
        before = held(pid)
        refused = await some(count)
        await empty()
        return {"before": before, "after": held(pid), "refused_for_want_of_room": refused}


def main() -> int:
    """Run; exit 1 when something stays behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=500)
    options = parser.parse_args()
    with serving(*demo(max_sessions=8, size=256, detach_s=1.0)) as (address, pid):
        facts = asyncio.run(churn(address, pid, options.sessions))
    before, after = facts["before"], facts["after"]
    grown = after["rss_mb"] / before["rss_mb"] - 1
    facts |= {"bench": "live_churn", "sessions": options.sessions}
    facts["rss_growth_percent"] = round(100 * grown, 1)
    kept = any(after[what] > before[what] + 1 for what in ("threads", "files"))
    kept |= after["processes"] != before["processes"]
    facts["pass"] = grown < 0.05 and not kept
    print(json.dumps(facts))
    return 0 if facts["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
