"""What ``visavis prepare`` made, to be looked at: ``CORPUS.json`` and ``CORPUS.html`` with pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visavis.train.clips import Clip
from visavis.train.evaluate import Voice, speak_clips
from visavis.train.survey import PICTURE_SIDE, Survey
from visavis.types import CHANNEL, CHANNELS, MOTION_RATE, SAMPLE_RATE, SPEECH_CHANNELS

FACES, CURVES = 8, 4
HISTOGRAMS = {
    "seconds": "length, s", "eye_px": "eye distance, px", "yaw": "|yaw|, degrees",
    "pitch": "|pitch|, degrees", "speech": "share of voiced sound", "level_db": "level, dBFS",
    "offset_ms": "mouth behind sound, ms", "sync": "jaw, heard against filmed",
}  # fmt: skip

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}td,th{padding:.2em .8em;text-align:left}
table{border-collapse:collapse}tr:nth-child(even){background:#f3f3f3}img{max-width:100%}
.faces{display:flex;flex-wrap:wrap;gap:8px}.faces figure{margin:0;width:250px}
figcaption{font-size:12px;color:#555}
"""


def write_report(
    out: Path, corpus: str, facts: list[dict], refused: dict[str, str], clips: list[Clip],
    read: Callable[[str], Survey],
) -> dict[str, Any]:  # fmt: skip
    """Write both files.

    Args:
        out: folder of all clips.
        corpus: name of the data set.
        facts: of every file looked at.
        refused: reason by name.
        clips: those used.
        read: survey by name.

    Returns:
        What the JSON file holds.
    """
    by_name = {f["name"]: f for f in facts}
    rows = [by_name[c.name] | c.meta for c in clips]
    report = {
        "corpus": corpus, "files": len(facts), "clips": len(clips),
        "looked_at_now": sum(bool(f.get("fresh")) for f in facts),
        "talkers": len({c.talker for c in clips}),
        "seconds": round(sum(len(c.pcm) for c in clips) / SAMPLE_RATE, 1),
        "with_motion": sum(c.motion is not None for c in clips),
        "with_phones": sum(c.phones is not None for c in clips),
        "offsets_ms": {c.name: c.meta["offset_ms"] for c in clips if c.motion is not None},
        "channels": channel_statistics(clips), "refused": refused,
    }  # fmt: skip
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (out / f"{corpus}.json").write_text(text + "\n", encoding="utf-8")
    filmed = [c for c in clips if c.motion is not None]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(corpus)}</title>",
        f"<style>{STYLE}</style><h1>{html.escape(corpus)}</h1>", _summary(report),
        _refused_table(refused), _faces(filmed, read), _curves(filmed),
        _histograms(rows), _channel_table(report["channels"]),
    ]  # fmt: skip
    (out / f"{corpus}.html").write_text("\n".join(parts), encoding="utf-8")
    return report


def channel_statistics(clips: list[Clip]) -> dict[str, list[float]]:
    """Channel -> 1st, 50th and 99th percentile and standard deviation over all filmed clips."""
    filmed = [c.motion for c in clips if c.motion is not None]
    if not filmed:
        return {}
    values = np.concatenate(filmed)
    table = np.vstack([np.quantile(values, (0.01, 0.5, 0.99), axis=0), values.std(0)])
    return {name: np.round(table[:, i], 4).tolist() for i, name in enumerate(CHANNELS)}


def _summary(report: dict) -> str:
    names = {
        "files": "files", "clips": "clips used", "looked_at_now": "looked at in this run",
        "talkers": "talkers", "seconds": "seconds", "with_motion": "with motion",
        "with_phones": "with phones",
    }  # fmt: skip
    cells = "".join(f"<tr><td>{text}<td>{report[key]}" for key, text in names.items())
    return f"<table>{cells}</table>"


def _refused_table(refused: dict[str, str]) -> str:
    if not refused:
        return "<h2>Refused</h2><p>None."
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{html.escape(why)}" for name, why in refused.items()
    )
    return f"<h2>Refused: {len(refused)}</h2><table>{rows}</table>"


def _faces(clips: list[Clip], read: Callable[[str], Survey]) -> str:
    """The tracked mesh over the frame of each shown clip in which the mouth is widest open."""
    shown = clips[:: max(1, len(clips) // FACES)][:FACES]
    figures = []
    for clip in shown:
        found = read(clip.name)
        frames = [k for k in found.pictures if found.track.seen[k]]
        lips = found.track.points[frames][:, [13, 14], 1]
        frame = frames[int(np.argmax(lips[:, 1] - lips[:, 0]))]
        picture = _with_mesh(found, frame)
        note = f"{clip.name}, frame {frame}, eyes {found.facts['eye_px']:.0f} px apart"
        figures.append(
            f"<figure><img src='{_uri(picture, 'jpeg')}'>"
            f"<figcaption>{html.escape(note)}</figcaption></figure>"
        )
    return "<h2>Faces</h2><div class=faces>" + "".join(figures) + "</div>" if figures else ""


def _with_mesh(found: Survey, frame: int) -> bytes:
    """JPEG of one picture, doubled, with the mesh's points; lips and eyes in colour."""
    image = cv2.imdecode(np.frombuffer(found.pictures[frame], np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    x, y, side = found.box
    points = (found.track.points[frame, :, :2] - (x, y)) * (2 * PICTURE_SIDE / side)
    lips = {0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181, 185,
            191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317, 318, 321, 324, 375, 402, 405,
            409, 415}  # fmt: skip
    for i, point in enumerate(points):
        colour = (60, 60, 255) if i in lips else (90, 230, 90)
        cv2.circle(image, tuple(int(v) for v in np.round(point)), 2, colour, -1, cv2.LINE_AA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _curves(clips: list[Clip]) -> str:
    """Lip opening and jaw, filmed and heard by the shipped net, under the sound."""
    shown = clips[:: max(1, len(clips) // CURVES)][:CURVES]
    if not shown:
        return ""
    figure, axes = _figure(len(shown), 1, (11, 2.6 * len(shown)))
    pairs = speak_clips(Voice.load(), shown)
    for axis, clip, (heard, filmed) in zip(axes.flat, shown, pairs, strict=True):
        time = np.arange(len(filmed)) / MOTION_RATE
        sound = np.abs(clip.pcm[: len(filmed) * 320].reshape(-1, 320)).max(1) / 32768
        jaw = CHANNEL["jaw_open"]
        axis.fill_between(time[: len(sound)], -0.02 - 0.2 * sound, -0.02, color="0.8")
        axis.plot(time, filmed[:, jaw], "k", lw=1.2, label="lip opening, filmed")
        axis.plot(time, heard[:, jaw], "r", lw=1, label="heard by the shipped net")
        axis.plot(time, filmed[:, CHANNEL["mouth_width"]], "b", lw=0.8, label="mouth width, filmed")
        axis.set_title(
            f"{clip.name}: {clip.meta['text'][:80]} ({clip.meta['offset_ms']:+.0f} ms taken out)",
            fontsize=9,
        )
    axes.flat[0].legend(fontsize=8, ncol=3, loc="upper right")
    return f"<h2>Motion</h2><img src='{_plot(figure)}'>"


def _histograms(rows: list[dict]) -> str:
    columns = {
        key: [float(r[key]) for r in rows if isinstance(r.get(key), int | float)]
        for key in HISTOGRAMS
    }
    columns = {k: v for k, v in columns.items() if v}
    if not columns:
        return ""
    figure, axes = _figure(-(-len(columns) // 4), 4, (11, 2.3 * -(-len(columns) // 4)))
    for axis in axes.flat[len(columns) :]:
        axis.axis("off")
    for axis, (key, values) in zip(axes.flat, columns.items(), strict=False):
        axis.hist(values, bins=min(20, max(5, len(values))), color="0.45")
        axis.set_title(HISTOGRAMS[key], fontsize=9)
    return f"<h2>Clips used</h2><img src='{_plot(figure)}'>"


def _channel_table(channels: dict[str, list[float]]) -> str:
    if not channels:
        return ""
    head = "<tr><th>channel<th>1 %<th>median<th>99 %<th>standard deviation"
    rows = "".join(
        f"<tr><td>{'<b>' if name in SPEECH_CHANNELS else ''}{name}</b>"
        + "".join(f"<td>{v:.3f}" for v in values)
        for name, values in channels.items()
    )
    return f"<h2>Channels</h2><table>{head}{rows}</table>"


def _figure(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _plot(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _uri(buffer.getvalue(), "png")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
