"""Sound in: the resampler against its formula, chunking, causality, files good and bad."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import speech_like, write_wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visavis import audio
from visavis.errors import AudioError, InputError


def run_stage(stage, pcm, chunks=None):
    """All output of one stage for ``(N,)`` or ``(N, C)`` input, cut as ``chunks`` says."""
    state, outs, start = stage.init_state(1), [], 0
    for size in chunks or [len(pcm)]:
        state, out = stage.step(state, pcm[None, start : start + size])
        outs.append(out[0])
        start += size
    assert start >= len(pcm)
    outs.append(stage.flush(state)[0])
    return np.concatenate(outs)


def resample_slowly(pcm, rate_in, rate_out=16_000):
    """The formula, written out: Kaiser-windowed sinc at the exact output times."""
    narrow = min(1.0, rate_out / rate_in)
    half = math.ceil(audio.ZERO_CROSSINGS / narrow)
    out = []
    for k in range(math.ceil(len(pcm) * rate_out / rate_in)):
        at = Fraction(k * rate_in, rate_out)
        index = np.arange(math.floor(at) - half + 1, math.floor(at) + half + 1)
        time = np.array([float(at - int(i)) for i in index])
        window = np.i0(audio.KAISER_BETA * np.sqrt(np.clip(1 - (time / half) ** 2, 0, None)))
        taps = np.sinc(audio.ROLLOFF * narrow * time) * window
        inside = (index >= 0) & (index < len(pcm))
        out.append(taps[inside] @ pcm[index[inside]] / taps.sum())
    return np.array(out)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 22050, 44100, 44101, 48000, 192000, 383999])
def test_resampler_follows_its_formula(rate):
    pcm = np.random.default_rng(rate).uniform(-1, 1, rate // 40).astype(np.float32)
    fast, slow = run_stage(audio.Resampler(rate), pcm), resample_slowly(pcm, rate)
    assert len(fast) == len(slow)
    np.testing.assert_allclose(fast, slow, atol=2e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_tone_keeps_time_and_level(rate):
    time_in, time_out = np.arange(rate // 2) / rate, np.arange(8000) / 16_000
    out = run_stage(audio.Resampler(rate), np.sin(2 * np.pi * 440 * time_in).astype(np.float32))
    error = out - np.sin(2 * np.pi * 440 * time_out)
    assert np.abs(error[200:-200]).max() < 1e-4


def test_what_would_alias_is_gone():
    time = np.arange(48_000) / 48_000
    out = run_stage(audio.Resampler(48_000), np.sin(2 * np.pi * 9_000 * time).astype(np.float32))
    assert np.abs(out[200:-200]).max() < 1e-4


@settings(max_examples=20, deadline=None)
@given(
    rate=st.sampled_from([8000, 16000, 22050, 44100, 48000, 96001]),
    sizes=st.lists(st.integers(0, 700), max_size=12),
    singles=st.integers(0, 200),
)
def test_chunks_change_no_bit(rate, sizes, singles):
    pcm = speech_like(0.1, rate)
    left = max(0, len(pcm) - singles - sum(sizes))
    for stage in (audio.Resampler(rate), audio.AudioIn(rate)):
        whole = run_stage(stage, pcm)
        assert np.array_equal(whole, run_stage(stage, pcm, [1] * singles + sizes + [left]))


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000, 192_000])
def test_look_ahead_is_as_declared(rate):
    stage = audio.Resampler(rate)
    assert stage.lookahead <= 80  # 5 ms
    assert (stage.lookahead == 0) == (rate == 16_000)
    random = np.random.default_rng(1)
    pcm = random.standard_normal(rate // 5).astype(np.float32)
    other = pcm.copy()
    other[rate // 10 :] = random.standard_normal(rate // 5 - rate // 10)
    changed = np.flatnonzero(run_stage(stage, pcm) != run_stage(stage, other))
    assert changed[0] >= 1600 - stage.lookahead
    # and as much is out as the look-ahead allows
    state, out = stage.step(stage.init_state(), pcm[None])
    assert out.shape[1] >= 3200 - stage.lookahead - 1


def test_batch_rows_do_not_mix():
    stage = audio.AudioIn(44_100)
    pcm = np.stack([speech_like(0.05, 44_100, seed) for seed in range(3)])
    state = stage.init_state(3)
    state, out = stage.step(state, pcm)
    for row, alone in zip(out, pcm, strict=True):
        assert np.array_equal(row, stage.step(stage.init_state(1), alone[None])[1][0])
    assert all(len(value) == 3 for value in state.values())


def test_high_pass_takes_the_offset_out_and_leaves_speech():
    speech = speech_like(1.0)
    out = run_stage(audio.HighPass(), speech + np.float32(0.5))
    assert abs(out[8000:].mean()) < 1e-3
    assert np.abs(out).max() <= np.abs(speech).max() * 1.3
    slow, before, y = [], speech[0], 0.0
    pole = math.exp(-2 * math.pi * audio.HIGH_PASS_HZ / 16_000)
    for x in speech[:500].astype(float):
        y, before = x - before + pole * y, x
        slow.append(y)
    np.testing.assert_allclose(run_stage(audio.HighPass(), speech[:500]), slow, atol=1e-6)


def test_pcm_to_float():
    assert audio.pcm_to_float(np.array([0, 128, 255], np.uint8)).tolist() == [-1, 0, 127 / 128]
    assert audio.pcm_to_float(np.array([-32768, 16384], np.int16)).tolist() == [-1, 0.5]
    assert audio.pcm_to_float(np.array([-(2**31)], np.int32)).tolist() == [-1]
    assert audio.pcm_to_float(np.array([1e30, -0.5])).tolist() == [1, -0.5]
    with pytest.raises(AudioError, match="NaN"):
        audio.pcm_to_float(np.array([np.nan], np.float32))
    with pytest.raises(AudioError, match="int64"):
        audio.pcm_to_float(np.array([1]))


def test_mono_keeps_a_centre_voice_and_drops_the_bass():
    seven_one = np.zeros((4, 8), np.float32)
    seven_one[:, 2] = 1.0
    assert np.allclose(audio.to_mono(seven_one), 0.4)
    seven_one[:] = 0
    seven_one[:, 3] = 1.0
    assert np.allclose(audio.to_mono(seven_one), 0)
    assert np.allclose(audio.to_mono(np.ones((4, 8), np.float32)), 1)
    assert np.allclose(audio.to_mono(np.ones((4, 2), np.float32)), 1)


@pytest.mark.parametrize(
    ("rate", "channels", "width"),
    [(16_000, 1, 2), (8000, 1, 1), (44_100, 2, 2), (48_000, 2, 3), (192_000, 1, 2), (48_000, 8, 4)],
)
def test_files_of_many_kinds_read_alike(wav, rate, channels, width):
    speech = speech_like(1.0, rate)
    path = wav(np.repeat(speech[:, None], channels, 1), rate, width)
    chunks = list(audio.read_audio(path, 1000))
    assert [len(c) for c in chunks[:-1]] == [1000] * 15
    out = np.concatenate(chunks)
    assert out.dtype == np.float32
    assert len(out) == 16_000
    expected = run_stage(audio.AudioIn(rate), speech)
    assert np.abs(out - expected).max() < (0.02 if width == 1 else 1e-3)
    info = audio.probe_audio(path)
    assert (info.rate, info.channels, info.duration) == (rate, channels, 1)
    assert audio.audio_duration(path) == 1


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [("mp3", "libmp3lame", 44_100), ("m4a", "aac", 48_000), ("opus", "libopus", 48_000),
     ("flac", "flac", 48_000), ("mkv", "aac", 22_050)],
)  # fmt: skip
def test_compressed_sound_starts_on_time(tmp_path, suffix, codec, rate):
    path = tmp_path / f"sound.{suffix}"
    speech = speech_like(1.5, rate)
    encode(path, codec, rate, speech)
    out = np.concatenate(list(audio.read_audio(path)))
    expected = run_stage(audio.AudioIn(rate), speech)
    n = min(len(out), len(expected))
    scores = [
        np.dot(out[4000 + d : n - 4000 + d], expected[4000 : n - 4000]) for d in range(-2000, 2000)
    ]
    assert abs(int(np.argmax(scores)) - 2000) <= 16  # 1 ms


@pytest.mark.parametrize(
    ("suffix", "codec"), [("flac", "flac"), ("m4a", "aac"), ("wav", "pcm_s16le")]
)
def test_seven_one_does_not_crash(tmp_path, suffix, codec):
    """PyAV 18 runs past the planes of an 8-channel planar frame (segmentation fault)."""
    path = tmp_path / f"sound.{suffix}"
    encode(path, codec, 48_000, np.repeat(speech_like(0.2, 48_000)[:, None], 8, 1), "7.1")
    blocks = [block for block, _ in audio.decode_audio(path)]
    assert {block.shape[1] for block in blocks} == {8}
    assert len(read_all(path)) >= 3200


@pytest.mark.parametrize("size", [1, 333, 5000])
def test_the_length_of_the_pieces_changes_nothing(wav, size):
    path = wav(speech_like(0.3, 44_100), 44_100)
    pieces = list(audio.read_audio(path, size))
    assert {len(piece) for piece in pieces[:-1]} <= {size}
    assert np.array_equal(np.concatenate(pieces), read_all(path))


@pytest.mark.parametrize("late_ms", [0, 500])
def test_sound_that_starts_late_in_a_film_stays_late(tmp_path, late_ms):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 64
        sound = container.add_stream("pcm_s16le", rate=16_000)
        sound.layout = "mono"
        for k in range(25):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(picture.encode(frame))
        click = np.full((1, 1600), 16_000, np.int16)
        frame = av.AudioFrame.from_ndarray(click, "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 16 * late_ms, Fraction(1, 16_000)
        container.mux(sound.encode(frame))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    blocks = np.concatenate([block for block, _ in audio.decode_audio(path)])[:, 0]
    assert np.flatnonzero(blocks)[0] == 16 * late_ms
    assert len(blocks) == 16 * late_ms + 1600


def encode(path, codec, rate, pcm, layout="mono"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        resampler = av.AudioResampler(stream.format, layout, rate)
        for start in range(0, len(pcm), 1000):
            packed = pcm[start : start + 1000].reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))


def test_silent_and_clipped_files_are_sound(wav):
    assert not np.concatenate(list(audio.read_audio(wav(np.zeros(8000))))).any()
    loud = np.sign(speech_like(0.5))
    assert len(np.concatenate(list(audio.read_audio(wav(loud, name="loud.wav"))))) == 8000


def read_all(path, **kwargs):
    return np.concatenate(list(audio.read_audio(path, **kwargs)))


def test_bad_files_are_refused_with_a_reason(tmp_path, wav):
    def refused(path, match):
        with pytest.raises(AudioError, match=match) as caught:
            read_all(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.wav", "does not exist")
    refused(tmp_path, "is a folder")
    refused("nul\0.wav", "does not exist")
    (tmp_path / "empty.wav").write_bytes(b"")
    refused(tmp_path / "empty.wav", "empty")
    (tmp_path / "text.wav").write_text("this is not sound\n" * 50)
    refused(tmp_path / "text.wav", "not a media file")
    refused(wav(np.zeros(0), name="zero.wav"), "no sound that can be decoded")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXTINF:2,\n{wav(np.zeros(99))}\n#EXT-X-ENDLIST\n"
    )
    refused(tmp_path / "list.m3u8", "not a media file")
    picture = tmp_path / "film.mp4"
    with av.open(str(picture), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    refused(picture, "no sound")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_where_it_stands(tmp_path, bad):
    pcm = speech_like(1.0)
    pcm[12_000] = bad
    encode(tmp_path / "nan.wav", "pcm_f32le", 16_000, pcm)
    with pytest.raises(AudioError, match=r"NaN or infinite samples at 0\.750 s"):
        read_all(tmp_path / "nan.wav")


def test_a_cut_file_is_used_as_far_as_it_goes(tmp_path, wav):
    whole = wav(speech_like(4.0)).read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[: len(whole) // 2])
    said = []
    out = read_all(cut, on_warning=said.append)
    assert 31_000 < len(out) <= 32_000
    assert len(said) == 1
    assert "using the 2.0 s that decode" in said[0]
    said.clear()
    read_all(wav(speech_like(1.0)), on_warning=said.append)
    assert said == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_break_the_reader(tmp_path, data):
    """Cut, overwritten or random bytes: sound, or an AudioError of one line; nothing else."""
    good = write_wav(tmp_path / "good.wav", speech_like(0.05)).read_bytes()
    kind = data.draw(st.sampled_from(["cut", "overwrite", "random"]))
    if kind == "cut":
        raw = good[: data.draw(st.integers(0, len(good)))]
    elif kind == "overwrite":
        raw = bytearray(good)
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    else:
        raw = data.draw(st.binary(max_size=400))
    path = tmp_path / "fuzz.wav"
    path.write_bytes(bytes(raw))
    try:
        out = read_all(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(out) > 0
        assert np.isfinite(out).all()
