"""The command line: statuses, one-line reasons, JSON, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import speech_like, write_wav

from visavis import cli
from visavis.motionfile import load_motion, save_motion
from visavis.types import CHANNEL, CHANNELS, Motion
from visavis.video import VideoWriter, probe_video, read_video

NEEDS_NET = pytest.mark.skipif(
    not (cli.ASSETS / "models" / "motion" / "model.json").is_file(),
    reason="the motion net is not shipped yet",
)
SMALL = ("--size", "256", "--tier", "mesh", "--fps", "10")


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    """Status, stdout and the lines of stderr of one command, in this process."""
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


@pytest.fixture
def motion_file(tmp_path) -> Path:
    values = np.zeros((50, len(CHANNELS)), np.float32)
    values[:, CHANNEL["jaw_open"]] = 0.1 + 0.1 * np.sin(np.arange(50) / 2)
    save_motion(Motion(values), tmp_path / "motion.safetensors")
    return tmp_path / "motion.safetensors"


@pytest.fixture
def film(tmp_path) -> Path:
    with VideoWriter(tmp_path / "film.mp4", Fraction(10), (64, 64)) as writer:
        for _ in range(5):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    return tmp_path / "film.mp4"


@pytest.mark.parametrize(
    "command",
    ["", "demo", "create", "render", "animate", "track", "stream", "models", "models list",
     "models pull", "models verify", "bench", "licenses", "prepare", "train", "train motion",
     "train autoencoder", "train renderer", "export"],
)  # fmt: skip
def test_help(capsys, command):
    status, out, err = run(capsys, *command.split(), "--help")
    assert status == 0
    assert "Usage: visavis" in out
    assert err == []


def test_usage_errors_are_one_line(capsys):
    for arguments in (["paint"], ["render"], ["render", "a"], ["demo", "--fps"], ["demo", "--x"]):
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err)) == (2, "", 1)


def bad_inputs(tmp_path, drawn_avatar, motion_file, film):
    """Arguments and what the reason must say."""
    wav = write_wav(tmp_path / "good.wav", speech_like(0.3))
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.touch()
    text.write_text("no sound here\n" * 20)
    zero = write_wav(tmp_path / "zero.wav", np.zeros(0))
    out = tmp_path / "out.mp4"
    render = ["render", drawn_avatar]
    yield [*render, tmp_path / "none.wav", "-o", out], "does not exist"
    yield [*render, empty, "-o", out], "empty"
    yield [*render, text, "-o", out], "not a media file"
    yield ["animate", drawn_avatar, motion_file, "-o", out, "--sound", zero, *SMALL], "no sound"
    yield [*render, film, "-o", out], "no sound"
    yield [*render, wav, "-o", tmp_path / "out.gif"], "expected .mp4 or .webm"
    yield [*render, wav, "-o", tmp_path / "no" / "out.mp4"], "does not exist"
    yield [*render, wav, "-o", tmp_path], "ends in ''"
    yield [*render, film, "-o", film], "would replace the input"
    yield [*render, wav, "-o", out, "--motion-out", wav], "would replace the input"
    for fps in ("fast", "0", "1e9", "1/0", "nan", "9" * 50):
        yield [*render, wav, "-o", out, "--fps", fps], "--fps"
    yield [*render, wav, "-o", out, "--size", "333"], "size"
    yield [*render, wav, "-o", out, "--size", "9000"], "size"
    yield [*render, wav, "-o", out, "--seed", "-1"], "seed"
    yield ["render", tmp_path / "none.avatar", wav, "-o", out], "no avatar file"
    yield ["animate", drawn_avatar, wav, "-o", out], "motion file"
    yield ["animate", drawn_avatar, tmp_path / "none.mp4", "-o", out], "does not exist"
    yield ["animate", drawn_avatar, motion_file, "-o", out, *SMALL, "--align", "x"], "align"
    yield ["animate", drawn_avatar, motion_file, "-o", out, "--sound", text, *SMALL], "media file"
    yield ["track", wav, "-o", tmp_path / "m.safetensors"], "no moving picture"
    yield ["track", tmp_path / "none.mp4", "-o", tmp_path / "m.safetensors"], "does not exist"
    yield ["create", tmp_path / "none.png", "-o", tmp_path / "a.avatar"], "none.png"
    yield ["create", tmp_path / "none.mp4", "-o", tmp_path / "a.avatar"], "none.mp4"
    yield ["create", text, "-o", text], "would replace the input"


def test_bad_input_is_told_in_one_line_and_costs_nothing(
    capsys, tmp_path, drawn_avatar, motion_file, film
):
    cases = list(bad_inputs(tmp_path, drawn_avatar, motion_file, film))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for arguments, reason in cases:
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err)) == (2, "", 1), (arguments, status, out, err)
        assert reason in err[0], (arguments, err)
        after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        assert after == before, arguments


def test_animate_by_a_motion_file(capsys, tmp_path, drawn_avatar, motion_file):
    sound = write_wav(tmp_path / "s.wav", speech_like(2.0))
    out = tmp_path / "out.mp4"
    arguments = ("animate", drawn_avatar, motion_file, "-o", out, *SMALL, "--sound", sound)
    status, text, err = run(capsys, *arguments, "--json")
    facts = json.loads(text.splitlines()[-1])
    assert (status, err, facts["frames"], facts["path"]) == (0, [], 10, str(out))
    info = probe_video(out)
    assert (info.width, info.height, info.has_sound) == (256, 256, True)
    assert len(list(read_video(out))) == 10


def test_a_failed_command_leaves_the_old_film(capsys, tmp_path, drawn_avatar, motion_file):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    bad = tmp_path / "nan.wav"
    write_wav(bad, speech_like(0.2)).write_bytes(bad.read_bytes()[:44])
    run(capsys, "animate", drawn_avatar, motion_file, "-o", out, "--sound", bad, *SMALL)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(tmp_path, drawn_avatar, number, status):
    values = np.zeros((50 * 3600, len(CHANNELS)), np.float32)  # an hour: it will not finish
    save_motion(Motion(values), tmp_path / "motion.safetensors")
    out = tmp_path / "film"
    out.mkdir()
    command = ["animate", drawn_avatar, tmp_path / "motion.safetensors", "-o", out / "out.mp4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "visavis", *map(str, command), *SMALL],
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):  # until the film is begun
        if list(out.iterdir()) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert list(out.iterdir()) == []


def test_training_without_torch_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments in (
        ["prepare", tmp_path, "-o", tmp_path],
        ["train", "motion", "x", "--clips", tmp_path, "-o", tmp_path],
        ["train", "autoencoder", "x", "--clips", tmp_path, "-o", tmp_path],
        ["train", "renderer", "x"],
        ["export", tmp_path, "-o", tmp_path],
    ):
        status, _, err = run(capsys, *arguments)
        assert (status, len(err)) == (2, 1)
        assert "pip install 'visavis[train]'" in err[0]


def test_licences(capsys):
    status, out, err = run(capsys, "licenses", "--json")
    facts = json.loads(out)
    names = {x["name"]: x for x in facts["installed"]}
    assert (status, err, facts["forbidden"]) == (0, [], [])
    assert {"visavis", "numpy", "openvino", "numba", "av"} <= names.keys()
    assert "torch" not in names
    assert all(x["verdict"] == "ok" for x in facts["installed"]), facts
    assert run(capsys, "licenses", "--check")[0] == 0


def test_a_missing_model_is_status_1(capsys, monkeypatch, tmp_path, drawn_avatar):
    monkeypatch.setenv("VISAVIS_MODELS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, _, err = run(capsys, "models", "verify")
    assert (status, len(err)) == (1, 1)
    assert "VISAVIS_MODELS" in err[0]
    assert run(capsys, "models", "list", "--json")[0] == 0


def test_the_demo_speech_is_short_clean_and_starts_soon():
    from visavis.audio import read_audio

    pcm = np.concatenate(list(read_audio(cli.DEMO_SPEECH)))
    assert 10 < len(pcm) / 16_000 < 16
    assert 0.5 < np.abs(pcm).max() < 0.9
    assert 0.1 < np.flatnonzero(np.abs(pcm) > 0.02)[0] / 16_000 < 0.3


# --- with the shipped net ------------------------------------------------------------------------


@NEEDS_NET
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_render(capsys, tmp_path, drawn_avatar, suffix):
    sound = write_wav(tmp_path / "s.wav", speech_like(1.25, 44_100), 44_100)
    out, motion = tmp_path / f"out{suffix}", tmp_path / "m.safetensors"
    arguments = ["render", drawn_avatar, sound, "-o", out, *SMALL, "--motion-out", motion]
    status, text, err = run(capsys, *arguments, "--json")
    facts = json.loads(text.splitlines()[-1])
    assert (status, err) == (0, [])
    assert facts["frames"] in (12, 13)
    assert len(list(read_video(out))) == facts["frames"]
    assert abs(len(load_motion(motion)) - 62) <= 1


@NEEDS_NET
def test_demo(capsys, tmp_path):
    out = tmp_path / "demo.mp4"
    status, text, err = run(
        capsys, "demo", "-o", out, "--size", "256", "--tier", "mesh", "--fps", "5"
    )
    assert (status, err) == (0, [])
    assert str(out) in text
    info = probe_video(out)
    assert info.has_sound
    assert 12 < info.duration < 14


@NEEDS_NET
def test_bad_settings_and_sound_found_late(capsys, tmp_path, drawn_avatar):
    zero = write_wav(tmp_path / "zero.wav", np.zeros(0))
    wav = write_wav(tmp_path / "good.wav", speech_like(0.3))
    out = tmp_path / "out.mp4"
    for arguments in ([zero, "-o", out], [wav, "-o", out, "--lookahead-ms", "7"]):
        status, text, err = run(capsys, "render", drawn_avatar, *arguments, *SMALL)
        assert (status, text, len(err)) == (2, "", 1)
    assert not out.exists()


@NEEDS_NET
def test_a_cut_sound_file_is_used_with_a_warning(capsys, tmp_path, drawn_avatar):
    cut = write_wav(tmp_path / "s.wav", speech_like(1.0))
    cut.write_bytes(cut.read_bytes()[:20_000])
    status, _, err = run(capsys, "render", drawn_avatar, cut, "-o", tmp_path / "o.mp4", *SMALL)
    assert status == 0
    assert len(err) == 1
    assert "warning" in err[0]


@NEEDS_NET
def test_stream_gives_the_frames_of_render(tmp_path, drawn_avatar):
    pcm = (speech_like(1.0) * 32767).astype("<i2").tobytes()
    command = [sys.executable, "-m", "visavis", "stream", str(drawn_avatar), *SMALL]
    done = subprocess.run(command, input=pcm, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == 10 * 256 * 256 * 3
    reader, writer = os.pipe()
    os.close(reader)  # `| head` that has gone
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            command, input=pcm, stdout=gone, stderr=subprocess.PIPE, check=False, timeout=120
        )
    assert (done.returncode, done.stderr) == (0, b"")


@NEEDS_NET
def test_bench(capsys, drawn_avatar):
    status, out, _ = run(capsys, "bench", drawn_avatar, "--seconds", "1", *SMALL, "--json")
    facts = json.loads(out.splitlines()[-1])
    assert status == 0
    assert {"features", "motion", "idle", "smoothing", "render", "encode"} <= facts[
        "core_ms"
    ].keys()
    assert facts["latency_ms"] <= 150
