"""A conversation in headless Chromium with a real server, measured in the page. One JSON line.

    python benchmarks/live_browser.py --seconds 600 --size 512

Measured: offer to first frame; frames per second; sound-to-picture offset (difference of the tracks'
estimated playout times); microphone to loudspeaker (the fake microphone plays bursts; both ends are
watched by analysers); interruption to silence, at the page's loudspeaker and in what the network
still brings. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

FLAGS = (
    "--no-sandbox --use-fake-ui-for-media-stream --use-fake-device-for-media-stream --disable-gpu "
    "--no-first-run --disable-background-networking --autoplay-policy=no-user-gesture-required"
).split()
BURST_S, PERIOD_S = 0.6, 2.0

HOOKS = """
window.marks = {};
const Native = window.RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  constructor(...a) { super(...a); window.pc = this; }
  setLocalDescription(...a) {
    window.marks.offer ??= performance.now();
    return super.setLocalDescription(...a);
  }
};
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async () =>
  (window.mic = await ask({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  }));
"""

WATCH = """() => {
  const video = document.querySelector('#video');
  const onFrame = (now, meta) => {
    window.marks.first ??= now;
    (window.marks.times ??= []).push(now);
    video.requestVideoFrameCallback(onFrame);
  };
  video.requestVideoFrameCallback(onFrame);
}"""

LISTEN = """() => {
  const context = new AudioContext();
  const watch = (stream) => {
    const node = context.createAnalyser();
    node.fftSize = 512;
    context.createMediaStreamSource(stream).connect(node);
    const data = new Float32Array(512), edges = [];
    let on = false, quiet = 0;
    setInterval(() => {
      node.getFloatTimeDomainData(data);
      const level = Math.max(...data.map(Math.abs));
      if (level > 0.05 && !on) { on = true; edges.push(['on', performance.now()]); }
      if (level < 0.01) { quiet += 1; } else { quiet = 0; }
      if (quiet > 8 && on) { on = false; edges.push(['off', performance.now() - 8 * 4]); }
    }, 4);
    return edges;
  };
  window.said = watch(window.mic);
  window.heard = watch(document.querySelector('#video').srcObject);
  window.offsets = [];
  setInterval(async () => {
    const t = {};
    for (const r of (await window.pc.getStats()).values())
      if (r.type === 'inbound-rtp') t[r.kind] = r.estimatedPlayoutTimestamp;
    if (t.audio && t.video) window.offsets.push(t.audio - t.video);
  }, 100);
}"""


INTERRUPT = """() => {
  const begin = performance.now();
  document.querySelector('#interrupt').click();
  return [begin, document.querySelector('#video').muted ? performance.now() - begin : 1e9];
}"""


def bursts(path: Path) -> Path:
    """A wav the fake microphone plays over and over: a burst every two seconds."""
    time = np.arange(round(PERIOD_S * 48_000)) / 48_000
    tone = np.where(time < BURST_S, 0.5 * np.sin(2 * np.pi * 300 * time), 0.0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


def lags(said: list, heard: list) -> list[float]:
    """Milliseconds from each burst at the microphone to the next at the loudspeaker."""
    heard_on = np.array([t for kind, t in heard if kind == "on"])
    found = []
    for kind, when in said:
        later = heard_on[heard_on > when]
        if kind == "on" and len(later) and later[0] - when < 1000 * PERIOD_S:
            found.append(float(later[0] - when))
    return found


def measure(page: Page, address: str, seconds: float) -> dict:
    """One conversation."""
    page.add_init_script(HOOKS)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.evaluate(WATCH)
    page.click("#start")
    page.wait_for_selector('#status[data-state="live"]', timeout=60_000)
    page.click("#mic")
    page.wait_for_selector('#mic[aria-pressed="true"]')
    page.evaluate(LISTEN)
    page.wait_for_timeout(seconds * 1000)
    said, heard = page.evaluate("[window.said, window.heard]")
    marks, offsets = page.evaluate("[window.marks, window.offsets]")
    stops = [_interrupt(page) for _ in range(5)]
    detail = page.inner_text("#detail")
    page.click("#end")
    times = np.array(marks["times"])
    steady = times[times > times[0] + 3000]
    settled = offsets[len(offsets) // 4 :]
    lag = lags(said, heard)
    return {
        "first_frame_ms": round(marks["first"] - marks["offer"]),
        "fps": round(1000 * (len(steady) - 1) / (steady[-1] - steady[0]), 2),
        "frame_gap_ms_p99": round(float(np.percentile(np.diff(steady), 99)), 1),
        "av_offset_ms_p50": _percentile(settled, 50),
        "av_offset_ms_p1": _percentile(settled, 1),
        "av_offset_ms_p99": _percentile(settled, 99),
        "mic_to_sound_ms_p50": _percentile(lag, 50),
        "mic_to_sound_ms_p95": _percentile(lag, 95),
        "interrupt_to_silence_ms": max(s["page"] for s in stops),
        "interrupt_to_network_silence_ms": [s["network"] for s in stops],
        "detail": detail,
    }


def _percentile(values: list, q: float) -> float | None:
    return round(float(np.percentile(values, q)), 1) if values else None


def _interrupt(page: Page) -> dict:
    """Wait for a burst to be heard, interrupt, see when it is silent."""
    count = page.evaluate("window.heard.length")
    for _ in range(600):
        edges = page.evaluate("window.heard")
        if len(edges) > count and edges[-1][0] == "on":
            break
        page.wait_for_timeout(5)
    page.evaluate("document.querySelector('#mic').click()")  # no new sound meanwhile
    begin, hushed = page.evaluate(INTERRUPT)
    page.wait_for_timeout(700)
    off = [t for kind, t in page.evaluate("window.heard") if kind == "off" and t > begin - 50]
    page.evaluate("document.querySelector('#mic').click()")
    page.wait_for_timeout(600)
    return {"page": round(hushed, 1), "network": round(off[0] - begin, 1) if off else None}


def main() -> int:
    """Run; prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tier", default="patch")
    options = parser.parse_args()
    command = [sys.executable, "-m", "visavis", "serve", "--port", "0", "--max-sessions", "2"]
    command += ["--size", str(options.size), "--tier", options.tier]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            mic = f"--use-file-for-fake-audio-capture={bursts(Path(folder) / 'mic.wav')}"
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=[*FLAGS, mic]
            )
            facts = measure(browser.new_page(), address, options.seconds)
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    facts = {
        "bench": "live_browser",
        "seconds": options.seconds,
        "size": options.size,
        "tier": options.tier,
        "load_average": os.getloadavg()[0],
        **facts,
        "bars": {
            "first_frame_ms": 1500,
            "fps": [29.5, 30.5],
            "mic_to_sound_ms_p95": 300,
            "av_offset_ms_p50": [-20, 20],
            "av_offset_ms_p1_p99": [-60, 40],
            "interrupt_to_silence_ms": 50,
        },
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
