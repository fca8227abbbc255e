"""The two promises of a stream (any chunking, no hidden future), latency, length, determinism."""

from fractions import Fraction

import numpy as np
import pytest
from conftest import speech_like

from visavis.clock import ManualClock
from visavis.errors import ConfigError
from visavis.pipeline import (
    Pipeline,
    PipelineConfig,
    StageClock,
    animate,
    frames_of_motion,
    render,
    stream,
)
from visavis.types import CHANNEL, N_CHANNELS, SAMPLE_RATE, Motion

SMALL = PipelineConfig(tier="mesh", size=256)


@pytest.fixture(scope="module")
def pipeline(demo_avatar):
    return Pipeline(demo_avatar, SMALL)


@pytest.fixture(scope="module")
def speech():
    return speech_like(2.0, seed=5)


def motion_of(pipe, pcm, cuts):
    """All motion of a sound pushed in pieces that end at ``cuts``."""
    state = pipe.init_state()
    out = []
    for piece in np.split(pcm, cuts):
        state, steps = pipe.hear(state, piece[None])
        out.append(steps[0])
    return np.concatenate([*out, pipe.hear_rest(state)[1][0]])


@pytest.mark.parametrize("size", [1, 7, 160, 333, 16_000])
def test_any_chunking_gives_the_same_motion(pipeline, speech, size):
    pcm = speech[: 16_000 if size > 1 else 4_000]
    whole = motion_of(pipeline, pcm, [])
    parts = motion_of(pipeline, pcm, list(range(size, len(pcm), size)))
    assert whole.shape == parts.shape == (-(-len(pcm) // 320), N_CHANNELS)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_nothing_after_the_lookahead_is_heard(pipeline, speech):
    """Changing the sound from sample t on leaves all motion before t - look-ahead as it was."""
    changed = speech.copy()
    t = 16_000
    changed[t:] = speech_like(2.0, seed=9)[t:] * 0.9
    a, b = motion_of(pipeline, speech, []), motion_of(pipeline, changed, [])
    # the interpolator adds one step more between motion and frames
    steps = (pipeline.latency_samples - 320) // 320
    first = t // 320 - steps + 1
    np.testing.assert_array_equal(a[:first], b[:first])
    assert not np.allclose(a[first : first + 20], b[first : first + 20]), "the test can fail"


@pytest.mark.parametrize("lookahead_ms", [0, 40, 80, 160])
@pytest.mark.parametrize("fps", [Fraction(30), Fraction(25), Fraction(30_000, 1001)])
def test_first_frame_comes_when_latency_says(demo_avatar, speech, lookahead_ms, fps):
    config = PipelineConfig(tier="mesh", size=256, lookahead_ms=lookahead_ms, fps=fps)
    pipe = Pipeline(demo_avatar, config)
    clock, state, heard = ManualClock(), pipe.init_state(), 0
    step = 80
    frames = []
    while not frames:
        clock.advance(step * 10**9 // SAMPLE_RATE)
        state, frames = pipe.step(state, speech[None, heard : heard + step])
        heard += step
    assert heard == pipe.latency_samples
    assert clock.now() == pytest.approx(float(pipe.latency) * 1e9, abs=2)
    if lookahead_ms == 80:
        assert pipe.latency <= Fraction(150, 1000)


@pytest.mark.parametrize("fps", [Fraction(30), Fraction(25), Fraction(24), Fraction(60)])
@pytest.mark.parametrize("samples", [1, 100, 5_000, 16_000, 23_457])
def test_length_is_the_sounds(demo_avatar, pipeline, speech, fps, samples):
    pipe = Pipeline(
        demo_avatar, PipelineConfig(tier="mesh", size=256, fps=fps), renderer=pipeline.renderer
    )
    frames = list(stream(demo_avatar, [speech[:samples]], pipeline=pipe))
    assert abs(len(frames) - round(samples * fps / SAMPLE_RATE)) <= 1
    assert [f.index for f in frames] == list(range(len(frames)))


def test_dials_of_mouth_and_head(demo_avatar, pipeline, speech):
    def spread(**dials):
        pipe = Pipeline(demo_avatar, SMALL.model_copy(update=dials), renderer=pipeline.renderer)
        return motion_of(pipe, speech, [])

    def reach(motion, *channels):
        return motion[:, [CHANNEL[c] for c in channels]].std(0)

    usual = spread()
    lips, head = ("jaw_open", "lower_lip_drop"), ("head_yaw", "head_pitch")
    more = spread(articulation=1.3)
    assert reach(more, *lips) == pytest.approx(1.3 * reach(usual, *lips), rel=0.12)
    assert reach(more, *head) == pytest.approx(reach(usual, *head), rel=1e-4)
    calm = spread(liveliness=0.5)
    assert reach(calm, *head) == pytest.approx(0.5 * reach(usual, *head), rel=0.02)
    assert reach(calm, *lips) == pytest.approx(reach(usual, *lips), rel=1e-4)
    assert not spread(articulation=0)[:, CHANNEL["jaw_open"]].any(), "shut stays shut"
    assert np.array_equal(reach(calm, "eye_blink_left"), reach(usual, "eye_blink_left"))


def test_no_sound_no_frames(pipeline, demo_avatar):
    assert list(stream(demo_avatar, [], pipeline=pipeline)) == []
    assert list(stream(demo_avatar, [np.zeros(0, np.float32)], pipeline=pipeline)) == []


def test_same_seed_same_frames_other_seed_other_frames(demo_avatar, pipeline, speech):
    pcm = speech[:12_000]
    first = [f.image for f in stream(demo_avatar, [pcm], pipeline=pipeline)]
    again = [f.image for f in stream(demo_avatar, np.split(pcm, [700, 801]), pipeline=pipeline)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = Pipeline(
        demo_avatar, PipelineConfig(tier="mesh", size=256, seed=1), renderer=pipeline.renderer
    )
    third = [f.image for f in stream(demo_avatar, [pcm], pipeline=other)]
    assert not all(np.array_equal(a, b) for a, b in zip(first, third, strict=True))


def test_patch_tier_is_deterministic_too(demo_avatar, speech):
    pipe = Pipeline(demo_avatar, PipelineConfig(tier="patch", size=256))
    runs = [[f.image for f in stream(demo_avatar, [speech[:9_000]], pipeline=pipe)] for _ in "ab"]
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_step_leaves_the_state_it_was_given(pipeline, speech):
    state = pipeline.init_state()
    state, _ = pipeline.step(state, speech[None, :4000])
    before = {k: v.copy() for k, v in state.items()}
    pipeline.step(state, speech[None, 4000:8000])
    assert all(np.array_equal(before[k], state[k]) for k in before)


def test_state_is_flat_small_and_batched(pipeline):
    state = pipeline.init_state(3)
    assert all("/" in name and isinstance(v, np.ndarray) for name, v in state.items())
    assert all(v.shape[0] == 3 for v in state.values())
    assert sum(v.nbytes for v in pipeline.init_state(1).values()) < 1 << 20


def test_two_side_by_side_are_as_alone(pipeline, speech):
    pcm = np.stack([speech[:6000], speech_like(2.0, seed=8)[:6000]])
    _, both = pipeline.hear(pipeline.init_state(2), pcm)
    state = pipeline.init_state(1)
    _, alone = pipeline.hear(state, pcm[:1])
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)


def test_render_writes_film_and_motion(demo_avatar, wav, speech, tmp_path):
    from visavis.motionfile import load_motion

    seen = []
    report = render(
        demo_avatar, wav(speech), tmp_path / "a.mp4", SMALL,
        progress=seen.append, motion_out=tmp_path / "m.safetensors",
    )  # fmt: skip
    assert report.frames == 60 == seen[-1]
    assert (tmp_path / "a.mp4").stat().st_size > 10_000
    motion = load_motion(tmp_path / "m.safetensors")
    assert len(motion) == 100
    rows = frames_of_motion(motion, Fraction(30), demo_avatar)
    assert rows.shape == (60, N_CHANNELS)
    report = animate(demo_avatar, motion, tmp_path / "b.webm", SMALL, sound=wav(speech))
    assert report.frames == 60


def test_a_failed_render_leaves_the_old_film(demo_avatar, wav, speech, tmp_path):
    out = tmp_path / "a.mp4"
    out.write_bytes(b"old")

    def stop(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(demo_avatar, wav(speech), out, SMALL, progress=stop)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "sound.wav"]


def test_first_row_becomes_the_photo(demo_avatar):
    values = np.zeros((10, N_CHANNELS), np.float32)
    values[:, CHANNEL["head_yaw"]] = 7
    rows = frames_of_motion(Motion(values), Fraction(50), demo_avatar, "first")
    np.testing.assert_allclose(rows[0], demo_avatar.motion)
    with pytest.raises(ConfigError, match="neutral, first"):
        frames_of_motion(Motion(values), Fraction(50), demo_avatar, "sideways")


def test_timer_sees_every_stage(pipeline, speech, demo_avatar):
    ticks = iter(range(10**9))
    clock = StageClock(lambda: next(ticks))
    list(stream(demo_avatar, [speech[:4000]], pipeline=pipeline, timer=clock))
    assert set(clock.total) == {"features", "motion", "idle", "smoothing", "render"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fps": 0}, "fps"),
        ({"size": 100}, "size"),
        ({"colour": 1}, "colour"),
        ({"seed": -1}, "seed"),
        ({"articulation": 2.5}, "articulation"),
        ({"liveliness": float("nan")}, "liveliness"),
    ],
)
def test_impossible_settings(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        PipelineConfig.of(**changes)
