"""Films out and in: time, length, colour, sound in step, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import speech_like, write_wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visavis.audio import decode_audio
from visavis.errors import AudioError, ConfigError, InputError, OutputError, VideoError
from visavis.video import FORMATS, QUALITIES, VideoWriter, probe_video, read_video

SIZE = (64, 48)
SUFFIXES = sorted(FORMATS)


def flat(colour, size=SIZE):
    return np.full((size[1], size[0], 3), colour, np.uint8)


def make_film(path, frames=10, fps=Fraction(30), size=SIZE, **kwargs):
    with VideoWriter(path, fps, size, **kwargs) as writer:
        for k in range(frames):
            writer.write(flat((20 * k % 256, 100, 200), size))
    return path


def clicks_at(seconds, length, rate):
    pcm = np.zeros(round(length * rate), np.float32)
    for second in seconds:
        start = round(second * rate)
        pcm[start : start + rate // 1000] = 0.9  # one millisecond
    return pcm


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60)])
def test_frames_come_back_in_number_and_time(tmp_path, suffix, fps):
    path = make_film(tmp_path / f"film{suffix}", 40, fps)
    frames = list(read_video(path))
    assert [index for index, _, _ in frames] == list(range(40))
    tolerance = Fraction(0) if suffix == ".mp4" else Fraction(1, 1000)  # WebM counts milliseconds
    assert all(abs(time - k / fps) <= tolerance for k, time, _ in frames)
    assert probe_video(path).has_sound is False


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.7, 3.0])
def test_sound_is_in_step_and_as_long_as_the_picture(tmp_path, suffix, rate, seconds):
    source = write_wav(tmp_path / "in.wav", clicks_at([0.2, 0.5], seconds, rate), rate)
    path = make_film(tmp_path / f"film{suffix}", 50, sound=decode_audio(source))  # 1.667 s
    blocks = list(decode_audio(path))
    sound, out_rate = np.concatenate([b[:, 0] for b, _ in blocks]), blocks[0][1]
    loud = np.flatnonzero(np.abs(sound) > 0.45) / out_rate
    starts = loud[np.insert(np.diff(loud) > 0.1, 0, True)]
    assert np.abs(starts - [0.2, 0.5]).max() < 0.001  # the bar is 5 ms
    assert abs(len(sound) / out_rate - 50 / 30) < 0.025  # AAC decodes to whole blocks of 1024
    with av.open(str(path)) as container:
        lengths = {s.type: s.duration * s.time_base for s in container.streams if s.duration}
    assert all(abs(length - Fraction(50, 30)) < Fraction(1, 500) for length in lengths.values())


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 11])
def test_any_number_of_channels(tmp_path, channels):
    blocks = [(np.repeat(speech_like(0.2, 48_000)[:, None], channels, 1), 48_000)]
    path = make_film(tmp_path / "film.mp4", 6, sound=iter(blocks))
    out, _ = next(decode_audio(path))
    assert out.shape[1] == (2 if 1 < channels <= 8 else 1)


def test_a_rate_that_changes_on_the_way_is_followed(tmp_path):
    blocks = [(np.full((rate // 2, 1), 0.5, np.float32), rate) for rate in (48_000, 16_000)]
    path = make_film(tmp_path / "film.mp4", 30, sound=iter(blocks))
    sound = np.concatenate([b for b, _ in decode_audio(path)])[2000:-2000, 0]
    assert np.abs(sound - 0.5).max() < 0.15


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pushed_sound(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    pcm = clicks_at([0.3], 1.0, 16_000)
    with VideoWriter(path, Fraction(25), SIZE, sound_format=(16_000, 1)) as writer:
        for k in range(25):
            writer.push_sound(pcm[640 * k : 640 * (k + 1)])
            writer.write(flat(k))
    blocks = list(decode_audio(path))
    sound = np.concatenate([b[:, 0] for b, _ in blocks])
    assert abs(np.flatnonzero(np.abs(sound) > 0.45)[0] / blocks[0][1] - 0.3) < 0.001


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("quality", QUALITIES)
def test_colours_survive(tmp_path, suffix, quality):
    colours = [(200, 60, 30), (20, 180, 90), (224, 172, 140), (10, 10, 12), (250, 250, 250)]
    path = tmp_path / f"film{suffix}"
    with VideoWriter(path, Fraction(25), (64, 64), quality=quality) as writer:
        for colour in colours:
            writer.write(flat(colour, (64, 64)))
    for colour, (_, _, image) in zip(colours, read_video(path), strict=True):
        assert np.abs(image.astype(int) - colour).mean() < 4.5
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (6, 1)  # BT.601, limited


def test_bad_settings_are_refused_before_anything_is_written(tmp_path):
    def refused(kind, match, name="film.mp4", fps=Fraction(30), size=SIZE, **kwargs):
        with pytest.raises(kind, match=match):
            make_film(tmp_path / name, 2, fps, size, **kwargs)
        assert list(tmp_path.iterdir()) == []

    refused(OutputError, r"\.avi.*expected \.mp4 or \.webm", "film.avi")
    refused(OutputError, "does not exist", "folder/film.mp4")
    refused(ConfigError, "63x48", size=(63, 48))
    refused(ConfigError, "frames per second", fps=Fraction(0))
    refused(ConfigError, "expected one of", quality="best")
    with (
        pytest.raises(ConfigError, match="shape"),
        VideoWriter(tmp_path / "film.mp4", Fraction(30), SIZE) as writer,
    ):
        writer.write(flat(0, (32, 32)))
    with pytest.raises(OutputError, match="no frame"):
        make_film(tmp_path / "film.mp4", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_film_leaves_the_old_one(tmp_path, error, suffix):
    path = tmp_path / f"film{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(error), VideoWriter(path, Fraction(30), SIZE) as writer:
        writer.write(flat(0))
        assert len(list(tmp_path.iterdir())) == 2
        raise error
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_bad_sound_leaves_the_old_film(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def sound():
        yield np.zeros((1000, 1), np.float32), 16_000
        raise AudioError("NaN")

    with pytest.raises(AudioError, match="NaN"):
        make_film(path, 10, sound=sound())
    with pytest.raises(AudioError, match="does not exist"):
        make_film(path, 10, sound=decode_audio(tmp_path / "none.wav"))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit", [100, 20_000, 70_000])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, suffix, limit):
    code = """if True:
        import resource, signal, sys
        from fractions import Fraction
        import numpy as np
        from visavis.errors import OutputError
        from visavis.video import VideoWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
        noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), np.uint8)
        try:
            with VideoWriter(sys.argv[1], Fraction(30), (128, 128), quality="high") as writer:
                for image in noise:
                    writer.write(image)
        except OutputError as error:
            sys.exit(str(error))
    """
    path = tmp_path / f"film{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(limit)], capture_output=True, text=True, check=False
    )
    assert f"cannot write {path}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        make_film("/proc/film.mp4", 2)
    for name in ("nul\0.mp4", "x" * 300 + ".mp4"):
        with pytest.raises(OutputError):
            make_film(tmp_path / name, 2)
    (tmp_path / "film.mp4").mkdir()
    with pytest.raises(OutputError, match="no file name"):
        make_film(tmp_path / "film.mp4", 2)


# --- in ------------------------------------------------------------------------------------------


def test_files_that_are_no_film(tmp_path):
    def refused(path, match):
        for call in (probe_video, lambda p: next(read_video(p))):
            with pytest.raises(VideoError, match=match) as caught:
                call(path)
            assert "\n" not in str(caught.value)

    refused(tmp_path / "none.mp4", "does not exist")
    refused(write_wav(tmp_path / "sound.wav", speech_like(0.1)), "no moving picture")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")
    (tmp_path / "text.mp4").write_text("not a film " * 99)
    refused(tmp_path / "text.mp4", "not a media file")


def test_a_film_without_its_tail_is_used_as_far_as_it_goes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    path = tmp_path / "film.webm"
    with VideoWriter(path, Fraction(30), (64, 64), quality="high") as writer:
        for image in noise:
            writer.write(image)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    assert 5 < len(list(read_video(path))) < 25
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) * 3 // 4 :])
    said = []
    assert len(list(read_video(path, said.append))) > 5
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize(
    ("clockwise", "matrix"), [(1, "0 1 -1 0"), (2, "-1 0 0 -1"), (3, "0 -1 1 0")]
)
def test_a_turned_film_is_set_upright(tmp_path, clockwise, matrix):
    image = flat(0)
    image[:24, :32] = (250, 0, 0)  # top left is red
    path = tmp_path / "film.mp4"
    with VideoWriter(path, Fraction(30), SIZE) as writer:
        for _ in range(3):
            writer.write(image)

    def in_file(a, b, c, d):  # ISO 14496-12, 8.3.2: {a, b, u, c, d, v, x, y, w}
        values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return b"".join((v % 2**32).to_bytes(4, "big") for v in values)

    plain, turned = in_file(1, 0, 0, 1), in_file(*map(int, matrix.split()))
    data = path.read_bytes()
    at = data.index(plain, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    expected = np.rot90(image, -clockwise)
    info = probe_video(path)
    assert (info.width, info.height) == expected.shape[1::-1]
    _, _, out = next(read_video(path))
    assert np.abs(out.astype(int) - expected).mean() < 6


def test_a_film_of_variable_rate_keeps_its_times(tmp_path):
    path, ticks = tmp_path / "film.mkv", [0, 33, 100, 117, 400]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.time_base = *SIZE, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(flat(40 * k), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    assert [time for _, time, _ in read_video(path)] == [Fraction(t, 1000) for t in ticks]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_break_the_film_reader(tmp_path, data):
    good = tmp_path / "good.mp4"
    if not good.exists():
        make_film(good, 4)
    raw = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 12))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.mp4"
    path.write_bytes(bytes(raw))
    try:
        count = sum(1 for _ in read_video(path))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert count >= 1
