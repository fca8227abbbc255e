"""A conversation in headless Chromium with a real server, measured in the page. One JSON line.

    python benchmarks/live_browser.py --seconds 600 --size 512
    python benchmarks/live_browser.py --seconds 20 --interruptions 200

The server marks each whole second by a white corner and an 8 kHz beep (`live_coded.py`), the fake
microphone says a word every 2.5 s. Measured in the page: offer to first frame; frames shown, by their
RTP timestamps; offset of sound and picture from the marks, positive where sound is early (EBU R37), and
from the tracks' statistics; microphone to loudspeaker; microphone to the opening of the mouth seen in
the video; interruptions of a playing file. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import urllib.request
import wave
from pathlib import Path

import cv2
import numpy as np
from live_process import cpu_seconds, rss, serving
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
FLAGS = (
    "--no-sandbox --use-fake-ui-for-media-stream --use-fake-device-for-media-stream --disable-gpu "
    "--no-first-run --disable-background-networking --autoplay-policy=no-user-gesture-required"
).split()
PERIOD_S = 2.5
WORD_S = (9.26, 10.1)  # of the demo speech: an open vowel after silence
MOUTH = (slice(268, 298), slice(242, 296))  # of the demo face at 512 px; live_page.js has it too
OPENS = 0.3  # of the way from rest to the widest: the mouth counts as open
SHOWS = 1.5  # how much red (Cr) an opening must take away to be judged
SETTLE_S = 8  # the browser's buffers find their length; not counted
FRAME_MS = 1000 / 30
BLOCK_MS = 10

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
FIRST = """() => {
  const video = document.querySelector('#video');
  video.requestVideoFrameCallback((now) => { window.marks.first = now; });
}"""
TAKE = """() => {
  const box = window.noted, out = {};
  for (const name of ["frames", "shown", "edges", "stats", "unmutes"]) out[name] = box[name].splice(0);
  return out;
}"""
INTERRUPT = """() => {
  const video = document.querySelector('#video'), begin = performance.now();
  document.querySelector('#interrupt').click();
  const hushed = video.muted ? performance.now() - begin : 1e9;
  const timer = setInterval(() => {
    if (video.muted) return;
    clearInterval(timer);
    window.noted.unmutes.push(performance.timeOrigin + performance.now());
  }, 2);
  return [performance.timeOrigin + begin, hushed];
}"""


def word() -> np.ndarray:
    """``(N,)`` float32 at 16 kHz: a word and a pause, without what could be taken for a beep."""
    from visavis.audio import read_audio
    from visavis.serve.config import ASSETS

    speech = np.concatenate(list(read_audio(ASSETS / "demo_speech.opus")))
    begin, end = (round(t * 16_000) for t in WORD_S)
    out = np.zeros(round(PERIOD_S * 16_000), np.float32)
    out[: end - begin] = speech[begin:end]
    spectrum = np.fft.rfft(out)
    spectrum[round(4000 * PERIOD_S) :] = 0
    return np.fft.irfft(spectrum, len(out)).astype(np.float32)


def write_wav(path: Path, pcm: np.ndarray) -> Path:
    """16 kHz mono."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def ideal_opening_ms(pcm: np.ndarray, size: int, tier: str) -> float:
    """From a word's onset to its mouth's, where nothing is late: what the face itself does."""
    from visavis.pipeline import Pipeline, PipelineConfig, open_avatar, stream
    from visavis.serve.config import ASSETS

    config = PipelineConfig.of(size=size, tier=tier)
    pipeline = Pipeline(open_avatar(ASSETS / "demo.avatar", size), config)
    sound = np.concatenate([np.zeros(16_000, np.float32), pcm, pcm])
    red = []
    scale = size / 512
    rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in MOUTH)
    for frame in stream(pipeline.renderer.avatar, [sound], pipeline=pipeline):
        yuv = cv2.cvtColor(frame.image[rows, columns], cv2.COLOR_RGB2YCrCb)
        red.append(float(np.mean(yuv[..., 1])))
    times = np.arange(len(red)) * FRAME_MS
    onset = 1000 + PERIOD_S * 1000 + 1000 * float(np.argmax(np.abs(pcm) > 0.05)) / 16_000
    found = opening(times, np.array(red), onset)
    return round(found - onset, 1) if found else float("nan")


def opening(times: np.ndarray, red: np.ndarray, onset: float) -> float | None:
    """When the mouth opens for a word begun at ``onset``: it shows less red."""
    before = red[(times > onset - 500) & (times < onset)]
    during = (times >= onset - 60) & (times < onset + 1300)
    if len(before) < 5 or not during.any():
        return None
    rest = float(np.median(before))
    depth = rest - float(red[during].min())
    if depth < SHOWS:
        return None
    at = np.flatnonzero(during & (red < rest - OPENS * depth))
    return float(times[at[0]]) if len(at) else None


class Watch:
    """What the page noted, taken out of it in pieces."""

    def __init__(self, page: Page, pid: int):
        self._page, self._pid = page, pid
        self.kept: dict[str, list] = {
            k: [] for k in ("frames", "shown", "edges", "stats", "unmutes")
        }
        self.rss: list[int] = []

    def take(self) -> None:
        """One piece."""
        for name, rows in self._page.evaluate(TAKE).items():
            self.kept[name] += rows
        self.rss.append(rss(self._pid))

    def wait(self, seconds: float) -> None:
        """Let it run."""
        while seconds > 0:
            self._page.wait_for_timeout(1000 * min(seconds, 10))
            self.take()
            seconds -= 10

    def edges(self, name: str, on: int = 1) -> np.ndarray:
        """``(N,)`` wall-clock ms at which a sound began or ended.

        A block's stamp plus what lies between stamps and arrivals of its track, the middle of 25: a
        microphone's block arrives when it is complete, a loudspeaker's when it begins.
        """
        clock = "mic" if name == "mic" else "out"
        rows = self.kept["edges"]
        ticks = np.array([row[3:5] for row in rows if row[0] == clock and row[1] == 2], float)
        found = np.array([row[2] for row in rows if row[0] == name and row[1] == on], float)
        if len(ticks) < 25 or not len(found):
            return np.zeros(0)
        lag = np.pad(ticks[:, 1] - ticks[:, 0], 12, mode="reflect")
        lag = np.median(np.lib.stride_tricks.sliding_window_view(lag, 25), axis=1)
        return found + np.interp(found, ticks[:, 0], lag) - (BLOCK_MS if name == "mic" else 0)

    def frames(self) -> dict[str, np.ndarray]:
        """Shown (wall ms), index (from RTP), corner, red; one row per frame.

        All frames pass the worker; the page's thread is told when some were shown. The median of what
        lay between is added to the first.
        """
        rows, shown = np.array(self.kept["frames"], float), self.kept["shown"]
        passed = {int(row[1]): row[0] for row in rows}
        delays = [row[0] - passed[int(row[2])] for row in shown if int(row[2]) in passed]
        rtp = rows[:, 1].astype(np.int64)
        steps = (np.diff(rtp) + (1 << 31)) % (1 << 32) - (1 << 31)
        index = np.round(np.concatenate([[0], np.cumsum(steps)]) / 3000).astype(int)
        order = np.concatenate([[True], np.diff(index) > 0])
        rows[:, 0] += np.median(delays)
        names = {"shown": 0, "corner": 3, "red": 4}
        return {k: rows[order, c] for k, c in names.items()} | {"index": index[order]}


def frame_facts(frames: dict[str, np.ndarray]) -> dict:
    """Rate and regularity of what was shown."""
    keep = frames["shown"] > frames["shown"][0] + 1000 * SETTLE_S
    shown, index = frames["shown"][keep], frames["index"][keep]
    expected = index[-1] - index[0] + 1
    plain = shown - index * FRAME_MS
    window = 301
    padded = np.pad(plain, window // 2, mode="reflect")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    on_time = np.abs(plain - usual) <= FRAME_MS
    return {
        "fps": round(1000 * (len(shown) - 1) / (shown[-1] - shown[0]), 2),
        "frames_on_time_percent": round(100 * float(on_time.sum()) / expected, 2),
        "frames_missing": int(expected - len(shown)),
        "frame_gap_ms_p99": round(float(np.percentile(np.diff(shown), 99)), 1),
        "frame_gap_ms_max": round(float(np.diff(shown).max()), 1),
    }


def mark_offsets(watch: Watch, frames: dict[str, np.ndarray]) -> np.ndarray:
    """``(N, 2)``: wall ms of each second's mark, and by how much its sound was early."""
    lit, index = frames["corner"] > 128, frames["index"]
    first = np.flatnonzero(lit[1:] & ~lit[:-1] & (np.diff(index) == 1)) + 1
    flashes, beeps = frames["shown"][first], watch.edges("beep")
    rows = []
    for flash in flashes:
        near = beeps[np.abs(beeps - flash) < 400] if len(beeps) else beeps
        if len(near):
            rows.append((flash, flash - near[np.argmin(np.abs(near - flash))]))
    return np.array(rows).reshape(-1, 2)


def offset_facts(watch: Watch, frames: dict[str, np.ndarray]) -> dict:
    """Sound against picture, by the marks and by the browser's own statistics."""
    marks = mark_offsets(watch, frames)
    marks = marks[marks[:, 0] > frames["shown"][0] + 1000 * SETTLE_S]
    told = [
        s["audio"]["estimatedPlayoutTimestamp"] - s["video"]["estimatedPlayoutTimestamp"]
        for s in watch.kept["stats"][2 * SETTLE_S :]
        if s.get("audio", {}).get("estimatedPlayoutTimestamp")
        and s.get("video", {}).get("estimatedPlayoutTimestamp")
    ]
    # a track delivers its sound before the device plays it, by Chromium's own account of that
    outs = [
        s["playout"] for s in watch.kept["stats"] if s.get("playout", {}).get("totalSamplesCount")
    ]
    device = 1000 * outs[-1]["totalPlayoutDelay"] / outs[-1]["totalSamplesCount"] if outs else 0.0
    facts = spread("av_offset_delivered_ms", marks[:, 1], (1, 50, 99)) | {"marks": len(marks)}
    marks[:, 1] -= device
    facts |= spread("av_offset_ms", marks[:, 1], (1, 50, 99))
    if len(marks) > 20:
        slope = np.polyfit(marks[:, 0] / 60_000, marks[:, 1], 1)[0]
        facts["av_trend_ms_per_minute"] = round(float(slope), 3)
    return facts | spread("av_offset_by_statistics_ms", told, (1, 50, 99))


def word_facts(watch: Watch, frames: dict[str, np.ndarray]) -> dict:
    """From the microphone to the loudspeaker and to the mouth."""
    said, heard = watch.edges("mic"), watch.edges("voice")
    said = said[said > frames["shown"][0] + 1000 * SETTLE_S]
    sound = [h[0] - s for s in said if len(h := heard[heard > s]) and h[0] - s < 1500]
    mouth = [opening(frames["shown"], frames["red"], s) for s in said]
    mouth = [m - s for m, s in zip(mouth, said, strict=True) if m]
    return {
        "words": len(said),
        **spread("mic_to_sound_ms", sound, (50, 95)),
        "words_seen": len(mouth),
        **spread("mic_to_mouth_ms", mouth, (50, 95)),
    }


def spread(name: str, values: list | np.ndarray, percents: tuple[int, ...]) -> dict:
    """Percentiles, ``None`` where there is nothing."""
    return {
        f"{name}_p{q}": round(float(np.percentile(values, q)), 1) if len(values) else None
        for q in percents
    }


def browser_facts(stats: list) -> dict:
    """What Chromium's receivers waited, on average over the second half."""
    if len(stats) < 20:
        return {}
    a, b = stats[len(stats) // 2], stats[-1]
    facts = {}
    for kind in ("audio", "video"):
        old, new = a[kind], b[kind]
        count = max(1, new["jitterBufferEmittedCount"] - old["jitterBufferEmittedCount"])
        facts[f"{kind}_buffer_ms"] = round(
            1000 * (new["jitterBufferDelay"] - old["jitterBufferDelay"]) / count, 1
        )
    decoded = max(1, b["video"]["framesDecoded"] - a["video"]["framesDecoded"])
    decode = b["video"]["totalDecodeTime"] - a["video"]["totalDecodeTime"]
    facts["decode_ms"] = round(1000 * decode / decoded, 2)
    facts["freezes"] = b["video"].get("freezeCount", 0)
    if "playout" in b and b["playout"].get("totalSamplesCount"):
        samples = b["playout"]["totalSamplesCount"]
        facts["playout_delay_ms"] = round(1000 * b["playout"]["totalPlayoutDelay"] / samples, 1)
    return facts


def server_facts(address: str) -> dict:
    """The server's own account."""
    text = urllib.request.urlopen(address + "/metrics", timeout=30).read().decode()
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] not in ("#", ""))
    value = {k.removeprefix("visavis_"): float(v) for k, v in rows.items()}
    facts = {}
    for stage in ("features", "motion", "idle", "smoothing", "render", "encode"):
        count = value.get(f'stage_seconds_count{{stage="{stage}"}}', 0)
        if count:
            total = value[f'stage_seconds_sum{{stage="{stage}"}}']
            facts[f"{stage}_ms"] = round(1000 * total / count, 2)
    count = value["frame_lateness_seconds_count"]
    inside = value['frame_lateness_seconds_bucket{le="0.02"}']
    facts["drawn_over_20_ms_late_percent"] = round(100 * (1 - inside / max(count, 1)), 2)
    for key in ("late", "slow_client"):
        facts[f"dropped_{key}"] = value[f'frames_dropped_total{{where="{key}"}}']
    for tier in ("patch", "mesh"):
        facts[f"frames_{tier}"] = value[f'frames_total{{tier="{tier}"}}']
    return facts


def interruptions(page: Page, watch: Watch, speech: Path, count: int) -> dict:
    """Play a file, interrupt it at a random moment, see when it is silent and the mouth shut."""
    chance = random.Random(0)
    clicks, hushed = [], []
    page.click("#mic")
    page.wait_for_timeout(1500)
    for _ in range(count):
        page.set_input_files("#sound", speech)
        page.wait_for_timeout(600 + 800 * chance.random())
        at, quiet = page.evaluate(INTERRUPT)
        clicks.append(at)
        hushed.append(quiet)
        page.wait_for_timeout(800)
        watch.take()
    frames, offs, ons = watch.frames(), watch.edges("voice", 0), watch.edges("voice", 1)
    shut, loud_after = [], 0
    unmutes = np.array(watch.kept["unmutes"])
    network = []
    for at in clicks:
        shut.append(closing(frames, at))
        later = unmutes[unmutes > at]
        off = offs[(offs > at - 300) & (offs < at + 700)]
        network.append(max(0.0, off[-1] - at) if len(off) else 0.0)
        loud_after += bool(len(later) and len(off) and off[-1] > later[0] + 5)
        loud_after += bool(((ons > at + 400) & (ons < at + 750)).any())
    closed = [s for s in shut if s is not None]
    return {
        "interruptions": count,
        "interrupt_to_page_silent_ms_max": round(max(hushed), 1),
        **spread("interrupt_to_network_silent_ms", network, (50, 95, 100)),
        "old_sound_heard_after": loud_after,
        "mouth_was_open": len(closed),
        **spread("interrupt_to_mouth_shut_ms", closed, (50, 95, 100)),
        "mouth_stuck": sum(s > 600 for s in closed),
    }


def closing(frames: dict[str, np.ndarray], at: float) -> float | None:
    """Ms from an interruption to the first frame with a shut mouth; ``None`` where it was shut."""
    times, red = frames["shown"], frames["red"]
    rest = float(np.median(red[(times > at + 450) & (times < at + 800)]))
    around = red[(times > at - 500) & (times < at + 50)]
    if not len(around) or rest - around.min() < SHOWS:
        return None
    level = rest - max(0.6, 0.15 * (rest - around.min()))
    open_after = times[(times > at) & (times < at + 800) & (red < level)]
    if not len(open_after):
        return 0.0
    following = times[times > open_after[-1]]
    return float(following[0] - at) if len(following) else 1e9


def measure(page: Page, address: str, pid: int, chromium: int, options: argparse.Namespace) -> dict:
    """One conversation."""
    page.add_init_script(HOOKS)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.evaluate(FIRST)
    page.click("#start")
    page.wait_for_selector('#status[data-state="live"]', timeout=60_000)
    page.click("#mic")
    page.wait_for_selector('#mic[aria-pressed="true"]')
    page.evaluate((HERE / "live_page.js").read_text().split("\n", 1)[1])
    watch = Watch(page, pid)
    spent = cpu_seconds(pid), cpu_seconds(chromium)
    watch.wait(options.seconds)
    used = [
        after - before
        for after, before in zip((cpu_seconds(pid), cpu_seconds(chromium)), spent, strict=True)
    ]
    frames = watch.frames()
    memory = watch.rss[len(watch.rss) // 5 :] or watch.rss
    marks = page.evaluate("window.marks")
    facts = {
        "first_frame_ms": round(marks["first"] - marks["offer"]),
        **frame_facts(frames),
        **offset_facts(watch, frames),
        **word_facts(watch, frames),
        "server_core_percent": round(100 * used[0] / options.seconds, 1),
        "chromium_core_percent": round(100 * (used[1] - used[0]) / options.seconds, 1),
        "rss_mb": [r >> 20 for r in watch.rss[:: max(1, len(watch.rss) // 12)]],
        "rss_growth_percent": round(100 * (memory[-1] / memory[0] - 1), 2),
        "browser": browser_facts(watch.kept["stats"]),
        "server": server_facts(address),
    }
    if options.dump:
        Path(options.dump).write_text(json.dumps(watch.kept))
    if options.interruptions:
        facts |= interruptions(page, watch, options.speech, options.interruptions)
        if options.dump:
            Path(options.dump).write_text(json.dumps(watch.kept))
    facts["detail"] = page.inner_text("#detail")
    page.click("#end")
    return facts


def main() -> int:
    """Run; prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--interruptions", type=int, default=0)
    parser.add_argument("--dump", help="write all that was noted here")
    options = parser.parse_args()
    pcm = word()
    ideal = ideal_opening_ms(pcm, options.size, options.tier)
    command = [str(HERE / "live_coded.py"), "--size", str(options.size), "--tier", options.tier]
    with (
        serving(*command) as (address, pid),
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
    ):
        options.speech = write_wav(Path(folder) / "speech.wav", np.tile(pcm[:13_000], 8))
        mic = f"--use-file-for-fake-audio-capture={write_wav(Path(folder) / 'mic.wav', pcm)}"
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*FLAGS, mic]
        )
        page = browser.new_page(bypass_csp=True)
        facts = measure(page, address, pid, os.getpid(), options)
        browser.close()
    facts = {
        "bench": "live_browser",
        "seconds": options.seconds,
        "size": options.size,
        "tier": options.tier,
        "load_average": round(os.getloadavg()[0], 2),
        **facts,
        "mouth_after_sound_in_the_face_itself_ms": ideal,
        "bars": {
            "first_frame_ms": 1500,
            "fps": [29.5, 30.5],
            "frames_on_time_percent": 99.5,
            "mic_to_mouth_ms_p95": 300,
            "av_offset_ms_p50": [-20, 20],
            "av_offset_ms_p1_p99": [-60, 40],
            "interrupt_to_page_silent_ms_max": 50,
            "interrupt_to_mouth_shut_ms_p100": 150,
        },
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
