"""A live conversation under a manual clock: sync, interruption, overload, idling, moving house."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from conftest import speech_like
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_doubles import DoublePipeline, MotionRenderer, row_of

from visavis.clock import ManualClock
from visavis.errors import AudioError, ConfigError, InputError
from visavis.session import SAMPLE_NS, AudioBlock, Session, SessionConfig, Tiers, VideoFrame
from visavis.types import CHANNEL, SPEECH_CHANNELS

HOP_NS = 20_000_000
JAW = CHANNEL["jaw_open"]
SPEECH = [CHANNEL[c] for c in SPEECH_CHANNELS]
PLAIN = SessionConfig(audio_rate=16_000, prebuffer_ms=0)


def make(config=PLAIN, *, fps=30, cost_ns=0, fallbacks=(), seed=0):
    clock = ManualClock(123_456_789)
    pipe = DoublePipeline(fps, MotionRenderer("patch", clock, cost_ns), seed)
    return Session(pipe, config, clock=clock, fallbacks=tuple(fallbacks)), clock


def run(session, clock, hops):
    """Let ``hops`` of 20 ms pass; everything that came out."""
    out = []
    for _ in range(hops):
        clock.advance(HOP_NS)
        out += session.advance()
    return out


def sound_of(items):
    blocks = [i for i in items if isinstance(i, AudioBlock)]
    return np.concatenate([b.pcm for b in blocks]) if blocks else np.zeros(0, np.float32)


def frames_of(items):
    return [i for i in items if isinstance(i, VideoFrame)]


# --- one clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [30, 25, 24, 60, Fraction(30000, 1001)])
def test_sound_and_frames_are_late_by_the_latency_exactly(fps):
    session, clock = make(fps=fps)
    list(session.advance())
    for item in run(session, clock, 150):
        content = (
            Fraction(item.pts, item.rate) if isinstance(item, AudioBlock) else item.pts / item.fps
        )
        exact = content * 16_000 + session.latency_samples
        assert 0 <= item.due - exact < 1
        # it came in the hop in which it is due: never late, never more than 20 ms early
        assert 0 <= session.time_of(item.due) - clock.now() + 150 * HOP_NS
    assert session.stats()["latency_ms"] == 120


def test_pts_have_no_gap_and_frames_keep_to_the_sound():
    session, clock = make()
    list(session.advance())
    items = run(session, clock, 500)
    blocks = [i for i in items if isinstance(i, AudioBlock)]
    frames = frames_of(items)
    assert [b.pts for b in blocks] == list(range(0, 320 * len(blocks), 320))
    assert [f.pts for f in frames] == list(range(len(frames)))
    assert abs(len(frames) / 30 - len(blocks) / 50) < 1 / 30 + 1 / 50


def test_what_was_pushed_is_what_is_heard():
    pcm = speech_like(1.0)
    session, clock = make()
    list(session.advance())
    session.push_audio(pcm, 16_000)
    session.end_of_speech()
    sound = sound_of(run(session, clock, 70))
    np.testing.assert_array_equal(sound[: len(pcm)], pcm)
    assert not sound[len(pcm) :].any()


def test_the_mouth_moves_with_the_sound_that_is_heard():
    """A beep in the middle of silence: loudness of the sound and the jaw line up by pts."""
    session, clock = make()
    list(session.advance())
    pcm = np.zeros(32_000, np.float32)
    pcm[16_000:20_800] = 0.5 * np.sin(np.arange(4800) * 0.2)
    session.push_audio(pcm, 16_000)
    items = run(session, clock, 120)
    open_at = [f.pts / 30 for f in frames_of(items) if row_of(f.image)[JAW] > 0.1]
    assert 0.96 <= open_at[0] <= 1.07
    assert 1.24 <= open_at[-1] <= 1.4


@pytest.mark.parametrize("chunk", [7, 160, 999, 16_000])
def test_chunk_size_changes_nothing(chunk):
    pcm = speech_like(0.5, 24_000)
    whole, pieces = make()[0], make()[0]
    whole.push_audio(pcm, 24_000)
    for start in range(0, len(pcm), chunk):
        pieces.push_audio(pcm[start : start + chunk], 24_000)
    clocks = [s._clock for s in (whole, pieces)]
    outs = []
    for session, clock in zip((whole, pieces), clocks, strict=True):
        list(session.advance())
        session.end_of_speech()
        outs.append(run(session, clock, 50))
    np.testing.assert_array_equal(sound_of(outs[0]), sound_of(outs[1]))
    for a, b in zip(frames_of(outs[0]), frames_of(outs[1]), strict=True):
        np.testing.assert_array_equal(a.image, b.image)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_viewers_hear_48_khz_whatever_came(rate):
    session, clock = make(SessionConfig(prebuffer_ms=0))
    list(session.advance())
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    session.push_audio(tone, rate)
    session.end_of_speech()
    sound = sound_of(run(session, clock, 80))
    want = 0.4 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    assert np.abs(sound[2_000:46_000] - want[2_000:46_000]).max() < 2e-3


def test_speech_in_real_time_with_jitter_has_no_holes():
    session, clock = make(SessionConfig(audio_rate=16_000, prebuffer_ms=40))
    list(session.advance())
    pcm = speech_like(4.0)
    random = np.random.default_rng(1)
    sent, out = 0, []
    for hop in range(250):
        clock.advance(HOP_NS)
        due = min(len(pcm), 320 * (hop + 1) - int(random.integers(0, 480)))
        if due > sent:
            session.push_audio(pcm[sent:due], 16_000)
            sent = due
        if hop == 210:
            session.end_of_speech()
        out += session.advance()
    sound = sound_of(out)
    start = np.flatnonzero(sound)[0] - np.flatnonzero(pcm)[0]
    np.testing.assert_array_equal(sound[start : start + len(pcm)], pcm)
    assert session.stats()["underruns"] <= 1


def test_a_microphones_delay_does_not_pile_up():
    """After a stall of a second the pauses of the talker are left out until nothing waits."""
    session, clock = make(SessionConfig(audio_rate=16_000))
    list(session.advance())
    talk = np.tile(np.concatenate([np.full(6_400, 0.2), np.zeros(6_400)]), 8).astype(np.float32)
    sent, waiting = 0, []
    for hop in range(310):
        clock.advance(HOP_NS)
        session.push_audio(talk[sent : sent + 320], 16_000, live=True)
        sent += 320
        if hop == 40:
            clock.advance(10**9)
            session.push_audio(np.resize(talk, 16_000), 16_000, live=True)
        list(session.advance())
        waiting.append(session.stats()["queued_s"])
    assert max(waiting) > 0.7
    assert waiting[-1] <= 0.08
    assert session.stats()["skipped"] >= 25


# --- interruption --------------------------------------------------------------------------------


def test_200_interruptions_at_random_moments():
    """No old sound after it, mouth shut in 150 ms and no jump on the way there."""
    session, clock = make()
    list(session.advance())
    random = np.random.default_rng(7)
    speech = np.abs(speech_like(4.0)) + 0.01  # nowhere zero: any leak shows
    wide = 0
    for _ in range(200):
        session.push_audio(speech, 16_000)
        run(session, clock, int(random.integers(10, 60)))
        clock.advance(int(random.integers(0, HOP_NS)))
        list(session.advance())
        session.clear_buffer()
        cut = clock.now()
        last = session._state["gate/last"][1]  # where the mouth is, a step beyond the last frame
        wide += last[SPEECH_CHANNELS.index("jaw_open")] > 0.05
        after = run(session, clock, int(random.integers(12, 40)))
        sound = sound_of(after)
        assert not sound[32:].any(), "only the 2 ms of declick"
        assert all(i.epoch == session.epoch for i in after)
        places = [last] + [row_of(f.image)[SPEECH] for f in frames_of(after)]
        jaws = np.array([p[SPEECH_CHANNELS.index("jaw_open")] for p in places])
        assert np.abs(np.diff(jaws)).max() < 0.75 * max(jaws.max(), 0.05)
        for frame in frames_of(after):
            if session.time_of(frame.due) - cut >= 150_000_000:
                assert not row_of(frame.image)[SPEECH].any(), "shut and still"
    assert wide > 40, "the test interrupts open mouths"


def test_speech_after_an_interruption_is_spoken_at_once():
    session, clock = make()
    list(session.advance())
    session.push_audio(speech_like(5.0), 16_000)
    run(session, clock, 60)
    session.clear_buffer()
    fresh = speech_like(1.0, seed=3)
    session.push_audio(fresh, 16_000)
    session.end_of_speech()
    items = run(session, clock, 70)
    sound = sound_of(items)
    start = session.latency_samples - 320
    np.testing.assert_array_equal(sound[start : start + len(fresh)], fresh)
    assert max(row_of(f.image)[JAW] for f in frames_of(items)) > 0.08


def test_a_voice_that_breaks_off_leaves_a_shut_mouth():
    session, clock = make()
    list(session.advance())
    session.push_audio(speech_like(1.0), 16_000)
    items = run(session, clock, 200)
    late = [row_of(f.image)[SPEECH] for f in frames_of(items) if f.pts > 55]
    assert not np.any(late)
    assert session.stats()["mouth_shut"]


# --- idle and listening --------------------------------------------------------------------------


def test_an_idle_face_lives():
    session, clock = make()
    list(session.advance())
    rows = np.array([row_of(f.image) for f in frames_of(run(session, clock, 1500))])
    assert rows[:, CHANNEL["eye_blink_left"]].max() > 0.8
    assert rows[:, CHANNEL["shift_y"]].std() > 0.001
    assert not rows[:, SPEECH].any()


def test_a_listener_looks_and_nods():
    quiet, clock_q = make()
    listening, clock_l = make()
    rows = {}
    for session, clock, talk in ((quiet, clock_q, False), (listening, clock_l, True)):
        list(session.advance())
        out = []
        for phrase in range(6):
            voice = speech_like(1.5, seed=phrase)
            voice[voice == 0] = 1e-4
            for hop in range(150):
                if talk and hop < 75:
                    tone = 0.2 * np.sin(np.arange(960) * 0.05, dtype=np.float32)
                    session.push_listen_audio(tone, 48_000)
                out += run(session, clock, 1)
        rows[talk] = np.array([row_of(f.image) for f in frames_of(out)])
    nod = rows[True][:, CHANNEL["head_pitch"]] - rows[False][:, CHANNEL["head_pitch"]]
    assert nod.max() > 1.0, "nodded"
    gaze = CHANNEL["gaze_x"]
    assert rows[True][:, gaze].std() < rows[False][:, gaze].std()


def test_a_day_leaves_nothing_behind():
    """Ten seconds after 24 h: the same arithmetic, the same memory (the whole day: live_soak.py)."""
    session, clock = make()
    list(session.advance())
    run(session, clock, 100)
    day = 24 * 3600 * 50
    for name in ("_hops", "_steps"):
        setattr(session, name, getattr(session, name) + day)
    state = session._state
    for name, more in (
        ("pipeline/frames", 30),
        ("interpolator/frames", 30),
        ("interpolator/steps", 50),
    ):
        state[name] = state[name] + more * 24 * 3600
    session._anchor -= day * HOP_NS
    tracemalloc.start()
    run(session, clock, 200)
    before = tracemalloc.get_traced_memory()[0]
    session._renderers[0].rows.clear()
    items = run(session, clock, 500)
    frames, blocks = frames_of(items), [i for i in items if isinstance(i, AudioBlock)]
    for item in items:
        assert abs(session.time_of(item.due) - clock.now()) <= 501 * HOP_NS
    assert abs(frames[-1].pts / 30 - (blocks[-1].pts + 320) / 16_000) <= 1 / 30
    assert frames[0].pts > 30 * 86_400
    del items, frames, blocks
    session._renderers[0].rows.clear()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000, grown


# --- overload ------------------------------------------------------------------------------------


def test_overload_lowers_the_tier_then_comes_back():
    clock = ManualClock()
    mesh = MotionRenderer("mesh", clock, 2_000_000)
    patch = MotionRenderer("patch", clock, 60_000_000)
    config = SessionConfig(audio_rate=16_000, step_up_s=2.0)
    session = Session(DoublePipeline(30, patch), config, clock=clock, fallbacks=(mesh,))
    list(session.advance())
    out = []
    while clock.now() < 20 * 10**9:
        clock.advance(5_000_000)
        out += session.advance()
    blocks = [i for i in out if isinstance(i, AudioBlock)]
    assert [b.pts for b in blocks] == list(range(0, 320 * len(blocks), 320)), "sound never stutters"
    assert session.stats()["tier"] == "mesh"
    before = session.stats()
    assert before["tier_changes"] <= 9, "each failed rise doubles the wait"
    patch.cost_ns = 5_000_000
    clock_end = clock.now() + 60 * 10**9
    while clock.now() < clock_end:
        clock.advance(5_000_000)
        out += session.advance()
    assert session.stats()["tier"] == "patch"
    assert session.stats()["dropped"] == before["dropped"]


def test_a_tier_that_fails_does_not_hold_back_the_one_below_it():
    tiers, frame = Tiers(3, SessionConfig()), 33_000_000
    spent = [0, 0, 0]
    for i in range(30 * 300):
        tiers.note(tiers.level == 0 or i < 40, i * frame)  # the best is too slow, the next is not
        spent[tiers.level] += 1
    assert spent[1] > 0.9 * sum(spent), spent
    assert spent[0] < 0.02 * sum(spent), spent


def test_work_too_slow_for_every_tier_drops_frames_not_sound():
    session, clock = make(cost_ns=80_000_000)
    list(session.advance())
    session.push_audio(speech_like(8.0), 16_000)
    out = []
    while clock.now() < 8 * 10**9:
        clock.advance(5_000_000)
        out += session.advance()
    blocks = [i for i in out if isinstance(i, AudioBlock)]
    assert [b.pts for b in blocks] == list(range(0, 320 * len(blocks), 320))
    stats = session.stats()
    assert stats["dropped"] > 60
    assert stats["rendered"] > 60
    assert stats["stalls"] == 0
    pts = [f.pts for f in frames_of(out)]
    assert pts == sorted(set(pts))


def test_a_stall_pauses_the_conversation_and_loses_no_sound():
    session, clock = make()
    list(session.advance())
    pcm = speech_like(4.0)
    session.push_audio(pcm, 16_000)
    session.end_of_speech()
    out = run(session, clock, 50)
    clock.advance(10 * 10**9)
    out += session.advance()
    out += run(session, clock, 250)
    np.testing.assert_array_equal(sound_of(out)[: len(pcm)], pcm)
    assert session.stats()["stalls"] == 1


# --- at the door ---------------------------------------------------------------------------------


def test_a_full_buffer_takes_no_more():
    session, _ = make(SessionConfig(buffer_s=1.0))
    assert session.push_audio(np.zeros(48_000, np.float32), 48_000) == 48_000
    assert session.push_audio(np.zeros(48_000, np.float32), 48_000) < 200
    for _ in range(100):
        session.push_audio(np.zeros(48_000, np.int16), 48_000)
        session.push_listen_audio(np.zeros(48_000, np.int16), 48_000)
    assert session.stats()["queued_s"] <= 1.01
    assert len(session._user) <= 8_000


@pytest.mark.parametrize(
    ("pcm", "rate"),
    [
        (np.array([0.0, np.nan], np.float32), 16_000),
        (np.zeros(10, np.complex64), 16_000),
        (np.zeros((2, 3, 4), np.float32), 16_000),
        (np.zeros(10, np.float32), 0),
        (np.zeros(10, np.float32), 10**9),
    ],
)
def test_what_is_no_sound_is_refused(pcm, rate):
    session, clock = make()
    list(session.advance())
    for push in (session.push_audio, session.push_listen_audio):
        with pytest.raises(AudioError):
            push(pcm, rate)
    assert run(session, clock, 10)


def test_odd_rates_are_refused():
    with pytest.raises(ConfigError, match="48000"):
        make(SessionConfig(audio_rate=44_100))


# --- whatever is done to it ---

ACTIONS = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 5_000), st.sampled_from([8_000, 11_025, 48_000])),
    st.tuples(st.just("listen"), st.integers(0, 5_000), st.sampled_from([16_000, 44_100])),
    st.tuples(st.sampled_from(["clear", "end", "pause", "move"]), st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 30), st.just(0)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, max_size=25), st.integers(0, 2**32 - 1))
def test_no_order_of_calls_breaks_the_clock(actions, seed):
    random = np.random.default_rng(seed)
    session, clock = make(SessionConfig(prebuffer_ms=20))
    list(session.advance())
    out = []
    for name, count, rate in [*actions, ("wait", 12, 0)]:
        if name == "push":
            session.push_audio(random.integers(-9000, 9000, count).astype(np.int16), rate)
        elif name == "listen":
            session.push_listen_audio(random.integers(-9000, 9000, count).astype(np.int16), rate)
        elif name == "move":
            session.load_state(session.save_state())
        elif name == "wait":
            out += run(session, clock, count)
        else:
            {"clear": session.clear_buffer, "end": session.end_of_speech, "pause": session.pause}[
                name
            ]()
    blocks = [i for i in out if isinstance(i, AudioBlock)]
    assert [b.pts for b in blocks] == list(range(0, 960 * len(blocks), 960))
    pts = [f.pts for f in frames_of(out)]
    assert pts == list(range(len(pts)))
    assert all(np.isfinite(b.pcm).all() and np.abs(b.pcm).max() <= 1.01 for b in blocks)


# --- moving house --------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [3, 31, 77])
def test_a_saved_conversation_goes_on_bit_for_bit(hops):
    config = SessionConfig(prebuffer_ms=40)
    one, clock = make(config, seed=5)
    list(one.advance())
    one.push_audio(speech_like(1.0, 24_000)[:19_999], 24_000)
    one.push_listen_audio(speech_like(0.4, 48_000), 48_000)
    run(one, clock, hops)
    two, clock_two = make(config, seed=99)
    two.load_state(one.save_state())
    for session in (one, two):
        session.push_audio(speech_like(0.5, 24_000, seed=2), 24_000)
    list(two.advance())
    for _ in range(80):
        clock.advance(HOP_NS)
        clock_two.advance(HOP_NS)
        for a, b in zip(one.advance(), two.advance(), strict=True):
            assert (a.pts, a.due, a.epoch) == (b.pts, b.due, b.epoch)
            left, right = (i.pcm if isinstance(i, AudioBlock) else i.image for i in (a, b))
            np.testing.assert_array_equal(left, right)


def test_a_strange_state_is_refused():
    session, _ = make()
    with pytest.raises(InputError):
        session.load_state(b"nothing")
    other, _ = make(fps=25)
    with pytest.raises(InputError, match="alike"):
        session.load_state(other.save_state())


def test_due_is_exact_in_nanoseconds():
    assert SAMPLE_NS * 16_000 == 1_000_000_000
