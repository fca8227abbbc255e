"""The command line. Builds the config, calls the library, says one line when it cannot.

Exit status: 0 done; 2 the input or the output cannot be used; 1 a model is missing or broken;
130 stopped with Ctrl-C. Heavy imports stand inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from visavis import cli_train
from visavis.console import complain, progress_bar, say, stop_if_told, watch_signals
from visavis.errors import ConfigError, ImageError, InputError, OutputError, VisavisError
from visavis.eval.cli import app as eval_app
from visavis.serve import cli as cli_serve
from visavis.serve import livekit_cli

if TYPE_CHECKING:
    import numpy as np

    from visavis.avatar import Avatar
    from visavis.facemesh import FaceMesh
    from visavis.pipeline import PipelineConfig, RenderReport
    from visavis.types import Motion
    from visavis.video import VideoInfo

ASSETS = Path(__file__).parent / "assets"
DEMO_AVATAR, DEMO_SPEECH = ASSETS / "demo.avatar", ASSETS / "demo_speech.opus"
FILM_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
STREAM_CHUNK = 640  # bytes: 20 ms of 16 kHz 16-bit mono

app = typer.Typer(
    help="One photo and a voice become a talking head.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(help="The model files: where they are, get them, check them.")
app.add_typer(models_app, name="models", no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Fps = Annotated[str, typer.Option(help="Frames per second: 30, 25, 29.97, 30000/1001.")]
Size = Annotated[int, typer.Option(help="Side of the square frame in pixels, 256 to 1024.")]
Tier = Annotated[str, typer.Option(help="Renderer: mesh, patch or full.")]
Articulation = Annotated[float, typer.Option(help="How far the mouth goes, 0 to 2.")]
Liveliness = Annotated[float, typer.Option(help="How far the head goes, 0 to 2.")]
Lookahead = Annotated[int, typer.Option(help="Sound heard ahead of a frame: 0, 40, 80 or 160 ms.")]
Seed = Annotated[int, typer.Option(help="Of blinks, gaze and head motion.")]
Who = Annotated[Path, typer.Argument(metavar="AVATAR|IMAGE", help="An .avatar file or a photo.")]


# --- at the edge ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    watch_signals()
    try:
        return app(args=arguments, prog_name="visavis", standalone_mode=False) or 0
    except TyperException as error:
        if error.format_message():  # empty: the help was printed
            complain(f"{error.format_message().rstrip('.')}: see visavis --help")
        return 2
    except (InputError, OutputError) as error:
        complain(str(error))
        return 2
    except VisavisError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _warn(text: str) -> None:
    complain(f"warning: {text}")


def _config(fps: str, **choices: object) -> PipelineConfig:
    from visavis.pipeline import PipelineConfig

    try:
        rate = Fraction(fps) if len(fps) <= 20 else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 1 <= rate <= 120:
        raise ConfigError(f"--fps {fps[:20]}; expected 1 to 120, such as 30, 29.97 or 30000/1001")
    return PipelineConfig.of(fps=rate, **choices)


def _check_film(path: Path, *inputs: Path) -> None:
    """Refuse, before any work, a name no film can be written to."""
    from visavis.video import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path} ends in '{path.suffix}'; expected {' or '.join(FORMATS)}")
    _check_output(path, *inputs)


def _check_output(path: Path, *inputs: Path) -> None:
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"-o {path} would replace the input; choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} does not exist: make it, or choose another")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected the name of a file to write")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"folder {path.parent} cannot be written: choose another")


def _frame_with_face(path: Path, mesh: FaceMesh) -> np.ndarray:
    """The best photo a film holds."""
    from visavis.photo import photo_of_film
    from visavis.video import read_video

    frames = ((float(time), image) for _, time, image in read_video(path, on_warning=_warn))
    image, at = photo_of_film(frames, mesh)
    _warn(f"{path}: one frame is used, at {at:.1f} s")
    return image


# --- commands ------------------------------------------------------------------------------------


@app.command()
def demo(
    output: Output = Path("demo.mp4"),
    fps: Fps = "30",
    size: Size = 512,
    tier: Tier = "patch",
    lookahead_ms: Lookahead = 80,
    seed: Seed = 0,
    articulation: Articulation = 1.0,
    liveliness: Liveliness = 1.0,
    as_json: Json = False,
) -> None:
    """The built-in person says the built-in sentences."""
    config = _config(
        fps, size=size, tier=tier, lookahead_ms=lookahead_ms, seed=seed,
        articulation=articulation, liveliness=liveliness,
    )  # fmt: skip
    _check_film(output)
    _render(DEMO_AVATAR, DEMO_SPEECH, output, config, as_json)


@app.command()
def create(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE|VIDEO", help="A photo, or 20 s to 5 min of film.")
    ],
    output: Output,
    size: Size = 512,
    name: Annotated[str | None, typer.Option(help="Shown in lists; else the file's.")] = None,
    licence: Annotated[str, typer.Option(help="Of the photo, kept in the file.")] = "",
    consent: Annotated[str, typer.Option(help="Who agreed, and how; kept in the file.")] = "",
    minutes: Annotated[
        float, typer.Option(help="Train a mouth net on the film (needs 'visavis\\[train]').", min=0)
    ] = 0,
    as_json: Json = False,
) -> None:
    """Make an avatar from a photo, or a personal one from a film."""
    from visavis.avatar import create_avatar
    from visavis.facemesh import FaceMesh
    from visavis.personal import LEAST_SECONDS
    from visavis.video import probe_video

    _check_output(output, source)
    if not source.is_file():  # told before the face graphs are looked for
        raise ImageError(f"{source} does not exist; expected a photo or a film: check the path")
    is_film = source.suffix.lower() in FILM_SUFFIXES
    if minutes and not is_film:
        raise ConfigError("--minutes trains on a film; give a film, or leave --minutes out")
    mesh = FaceMesh.open()
    about = {"size": size, "name": name or source.stem, "source_licence": licence}
    about |= {"consent": consent, "mesh": mesh}
    long = is_film and (probe_video(source).duration or 0) >= LEAST_SECONDS
    facts: dict = {}
    if minutes or long:
        avatar, facts = _create_from_film(source, output, minutes, about)
    else:
        avatar = create_avatar(_frame_with_face(source, mesh) if is_film else source, **about)
        avatar.save(output)
    facts |= {"output": str(output), "size": avatar.size, "bytes": output.stat().st_size}
    say(as_json, facts, f"wrote {output}: {avatar.size} px, {facts['bytes'] / 1e6:.1f} MB")


def _create_from_film(
    source: Path, output: Path, minutes: float, about: dict
) -> tuple[Avatar, dict]:
    """A personal avatar, written to ``output``, and what there is to say about it."""
    import time

    from visavis.personal import create_from_film

    with _stages() as progress:
        if not minutes:
            avatar, report = create_from_film(source, progress=progress, **about)
            avatar.save(output)
            return avatar, asdict(report)
        cli_train.need_torch()
        from visavis.train.personal import create_trained

        return create_trained(source, output, minutes, time.monotonic, progress, **about)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one for each stage; call with the stage, steps done and in all (0: open)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, int] = {}

        def advance(stage: str, done: int, total: int) -> None:
            stop_if_told()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done)

        yield advance


@app.command()
def render(
    who: Who,
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="Any sound or video file.")],
    output: Output,
    fps: Fps = "30",
    size: Size = 512,
    tier: Tier = "patch",
    lookahead_ms: Lookahead = 80,
    seed: Seed = 0,
    articulation: Articulation = 1.0,
    liveliness: Liveliness = 1.0,
    motion: Annotated[Path | None, typer.Option(help="Folder of a motion net of yours.")] = None,
    motion_out: Annotated[Path | None, typer.Option(help="Keep the motion too.")] = None,
    as_json: Json = False,
) -> None:
    """A face says what a sound file says: OUT.mp4 (H.264) or OUT.webm (VP9)."""
    from visavis.audio import probe_audio

    config = _config(
        fps, size=size, tier=tier, lookahead_ms=lookahead_ms, seed=seed,
        articulation=articulation, liveliness=liveliness,
    )  # fmt: skip
    _check_film(output, who, audio)
    if motion_out is not None:
        _check_output(motion_out, who, audio, output)
    probe_audio(audio)
    _render(who, audio, output, config, as_json, motion_dir=motion, motion_out=motion_out)


def _render(
    who: Path, audio: Path, output: Path, config: PipelineConfig, as_json: bool, **how: Path | None
) -> None:
    from visavis import pipeline
    from visavis.audio import audio_duration
    from visavis.clock import frame_count
    from visavis.types import SAMPLE_RATE

    avatar = pipeline.open_avatar(who, config.size)
    seconds = audio_duration(audio)
    total = None if seconds is None else frame_count(round(seconds * SAMPLE_RATE), config.fps)
    with progress_bar("render", total) as progress:
        report = pipeline.render(avatar, audio, output, config, progress=progress, **how)
    _report(report, as_json)


def _report(report: RenderReport, as_json: bool) -> None:
    for warning in report.warnings:
        _warn(warning)
    text = f"wrote {report.path}: {report.frames} frames, {report.seconds:.2f} s"
    say(as_json, asdict(report), text)


@app.command()
def animate(
    who: Who,
    driver: Annotated[
        Path, typer.Argument(metavar="MOTION|VIDEO", help="A motion file, or a film to follow.")
    ],
    output: Output,
    fps: Fps = "30",
    size: Size = 512,
    tier: Tier = "patch",
    sound: Annotated[
        Path | None, typer.Option(help="Sound to go along; a film brings its own.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="neutral: head motion around the photo's pose; first: as filmed.")
    ] = "neutral",
    as_json: Json = False,
) -> None:
    """A face moves as a motion file says, or as the person in a film does."""
    from visavis import pipeline

    config = _config(fps, size=size, tier=tier)
    _check_film(output, who, driver, *([sound] if sound else []))
    motion, own_sound = _driver(driver)
    avatar = pipeline.open_avatar(who, config.size)
    with progress_bar("animate", round(len(motion) / motion.rate * config.fps)) as progress:
        report = pipeline.animate(
            avatar,
            motion,
            output,
            config,
            sound=sound or own_sound,
            align=align,
            progress=progress,
        )
    _report(report, as_json)


def _driver(path: Path) -> tuple[Motion, Path | None]:
    """Motion of a motion file or of a film, and the film if it has sound."""
    from visavis.motionfile import load_motion
    from visavis.track import track_video
    from visavis.video import probe_video

    if path.suffix.lower() not in FILM_SUFFIXES:
        return load_motion(path), None
    info = probe_video(path)
    with progress_bar("track", _frames_of(info)) as progress:
        motion = track_video(path, progress=progress)
    return motion, path if info.has_sound else None


def _frames_of(info: VideoInfo) -> int | None:
    return round(info.fps * info.duration) if info.fps and info.duration else None


@app.command()
def track(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A film of one face.")],
    output: Output,
    csv: Annotated[bool, typer.Option("--csv", help="Also OUT.csv, ARKit blendshapes.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the motion of the person in a film."""
    from visavis.motionfile import save_motion, to_arkit_csv
    from visavis.track import track_video
    from visavis.video import probe_video

    _check_output(output, video)
    with progress_bar("track", _frames_of(probe_video(video))) as progress:
        motion = track_video(video, progress=progress)
    save_motion(motion, output)
    facts = {"output": str(output), "steps": len(motion), "rate": str(motion.rate)}
    if csv:
        facts["csv"] = str(output.with_suffix(".csv"))
        to_arkit_csv(motion, facts["csv"])
    say(as_json, facts, f"wrote {output}: {len(motion)} steps at {motion.rate} Hz")


@app.command()
def stream(
    who: Who,
    fps: Fps = "30",
    size: Size = 512,
    tier: Tier = "patch",
    lookahead_ms: Lookahead = 80,
    seed: Seed = 0,
    articulation: Articulation = 1.0,
    liveliness: Liveliness = 1.0,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="JPEG images, not raw RGB.")] = False,
) -> None:
    """Raw pipe: 16 kHz 16-bit mono PCM on stdin, frames on stdout as they are ready.

    Frames are SIZE x SIZE x 3 bytes: ffplay -f rawvideo -pixel_format rgb24 -video_size 512x512 -
    """
    import cv2

    from visavis import pipeline

    if sys.stdout.isatty():
        raise ConfigError("stream writes raw frames to a terminal; expected a pipe or a file")
    config = _config(
        fps, size=size, tier=tier, lookahead_ms=lookahead_ms, seed=seed,
        articulation=articulation, liveliness=liveliness,
    )  # fmt: skip
    avatar = pipeline.open_avatar(who, size)
    try:
        for frame in pipeline.stream(avatar, _stdin_pcm(), config):
            stop_if_told()
            data = frame.image.tobytes()
            if jpeg:
                bgr = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
                data = cv2.imencode(".jpg", bgr)[1].tobytes()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # `visavis stream | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdin_pcm() -> Iterator:
    import numpy as np

    from visavis.audio import pcm_to_float

    odd = b""
    while data := sys.stdin.buffer.read1(STREAM_CHUNK):
        data = odd + data
        even = len(data) // 2 * 2
        odd = data[even:]
        if even:
            yield pcm_to_float(np.frombuffer(data[:even], "<i2"))


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """What there is and where."""
    from visavis.modelstore import cache_dir, find_task

    task = find_task()
    wheel = cache_dir() / "mediapipe-0.10.21"
    face = str(task or (wheel if wheel.is_dir() else "") or "missing: visavis models pull")
    shipped = {path.name: str(path) for path in sorted((ASSETS / "models").iterdir())}
    lines = [f"{'face graphs':16} {face}", *(f"{k:16} {v}" for k, v in shipped.items())]
    say(as_json, {"face_graphs": face, "shipped": shipped}, "\n".join(lines))


@models_app.command("pull")
def models_pull(as_json: Json = False) -> None:
    """Fetch the face graphs (Google, Apache-2.0) unless they are here."""
    from visavis.modelstore import face_graphs

    origin = str(face_graphs().origin)
    say(as_json, {"face_graphs": origin}, f"face graphs: {origin}")


@models_app.command("verify")
def models_verify(as_json: Json = False) -> None:
    """Check hashes and load every model once."""
    from visavis.backends import Graph
    from visavis.modelstore import face_graphs, sha256

    facts = {"face_graphs": str(face_graphs(download=False).origin), "shipped": {}}
    for path in sorted((ASSETS / "models").rglob("*")):
        if path.suffix == ".onnx":
            Graph(path)  # raises ModelError when damaged
        if path.suffix in (".onnx", ".safetensors", ".json"):
            facts["shipped"][str(path.relative_to(ASSETS))] = sha256(path)
    text = [f"{digest[:16]}  {name}" for name, digest in facts["shipped"].items()]
    say(as_json, facts, "\n".join([*text, f"face graphs: {facts['face_graphs']}", "all good"]))


@app.command()
def licenses(
    check: Annotated[
        bool, typer.Option("--check", help="Exit 2 unless all is permissive.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The licences of what the base install brings."""
    from visavis.licenses import forbidden, installed

    found, never = installed(), forbidden()
    lines = [f"{x.name:28} {x.version:14} {x.verdict:6} {x.licence}" for x in [*found, *never]]
    facts = {"installed": [asdict(x) for x in found], "forbidden": [asdict(x) for x in never]}
    say(as_json, facts, "\n".join(lines))
    bad = [*never, *(x for x in found if x.verdict != "ok")]
    if check and bad:
        names = ", ".join(f"{x.name} ({x.licence})" for x in bad)
        raise ConfigError(f"{names} installed; expected permissive licences only: uninstall")


@app.command()
def bench(
    who: Annotated[Path | None, typer.Argument(metavar="AVATAR", help="Else the demo's.")] = None,
    seconds: Annotated[int, typer.Option(help="Of speech to render.", min=1)] = 10,
    fps: Fps = "30",
    size: Size = 512,
    tier: Tier = "patch",
    as_json: Json = False,
) -> None:
    """Core-milliseconds per frame of each stage, and how much faster than life a render is."""
    from visavis.bench import measure

    config = _config(fps, size=size, tier=tier)
    facts = measure(who or DEMO_AVATAR, DEMO_SPEECH, config, seconds)
    lines = [
        f"{name:12} {value:7.2f} core-ms per frame" for name, value in facts["core_ms"].items()
    ]
    lines.append(f"one frame: median {facts['frame_ms_p50']} ms, p99 {facts['frame_ms_p99']} ms")
    lines.append(f"whole render, encoding included: {facts['times_real_time']} x real time")
    say(as_json, facts, "\n".join(lines))


app.command("prepare")(cli_train.prepare)
app.add_typer(cli_train.train_app, name="train", no_args_is_help=True)
app.command("export")(cli_train.export)
app.add_typer(eval_app, name="eval")
app.command("serve")(cli_serve.serve)
app.command("livekit")(livekit_cli.livekit)
