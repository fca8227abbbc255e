"""Each measure on a case whose answer is known. Synthetic faces and signals, no models."""

from __future__ import annotations

import numpy as np
import pytest

from visavis.eval import (
    expressiveness,
    image,
    landmarks,
    latency,
    lips,
    rows,
    silence,
    stats,
    sync,
    temporal,
)

RATE = 25.0


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def face(rng) -> np.ndarray:
    """A cloud of 478 points, outer eye corners 100 px apart."""
    points = rng.normal(0, 60, (478, 3)) + np.array([200, 200, 0])
    points[33] = [150, 180, 0]
    points[263] = [250, 180, 0]
    return points


def turn(points: np.ndarray, degrees: float, axis: int) -> np.ndarray:
    a = np.radians(degrees)
    i, j = [k for k in range(3) if k != axis]
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = np.cos(a)
    rotation[i, j], rotation[j, i] = -np.sin(a), np.sin(a)
    return points @ rotation.T


# landmarks


def test_nme_of_a_known_shift(face):
    real = np.repeat(face[None], 4, axis=0)
    assert landmarks.nme(real, real) == 0
    assert landmarks.nme(real + np.array([5, 0, 0]), real) == pytest.approx(0.05)


def test_pose_is_removed_in_three_dimensions(face):
    posed = np.stack([1.3 * turn(turn(face, 12, 1), 7, 2) + [30, -12, 4], face])
    assert np.allclose(landmarks.remove_pose(posed, face), face, atol=1e-6)


def test_mouth_error_ignores_the_head_and_sees_the_mouth(face):
    real = np.repeat(face[None], 3, axis=0)
    turned = 1.1 * turn(real, 10, 1) + 20
    assert landmarks.mouth_nme(turned, real) == pytest.approx(0, abs=1e-9)
    opened = turned.copy()
    opened[:, list(landmarks.LIPS)] += 1.1 * turn(np.array([[0.0, 4.0, 0.0]]), 10, 1)
    assert landmarks.mouth_nme(opened, real) == pytest.approx(0.04, rel=1e-6)


def test_lmd_is_pixels_with_the_mouth_centroid_removed(face):
    real = np.repeat(face[None], 3, axis=0)
    assert landmarks.lmd(real + np.array([9, 3, 0]), real) == pytest.approx(0, abs=1e-9)
    wider = real.copy()
    mouth = list(landmarks.MOUTH_68)
    signs = np.where(np.arange(20) % 2 == 0, 2.0, -2.0)
    wider[:, mouth, 0] += signs
    assert landmarks.lmd(wider, real) == pytest.approx(2.0)
    assert len(set(landmarks.MESH_68)) == 68
    assert landmarks.face_lmd(real + 5, real) == pytest.approx(0, abs=1e-9)


def test_lip_vertex_error_is_the_largest_squared_distance(face):
    real = np.repeat(face[None], 5, axis=0)
    wrong = real.copy()
    wrong[:, landmarks.LIPS[3], 1] += 10  # 0.1 eye distances
    wrong[:, landmarks.LIPS[4], 1] += 5
    assert landmarks.lip_vertex_error(wrong, real) == pytest.approx(0.01, rel=1e-6)


def test_upper_face_deviation_is_signed(face, rng):
    real = np.repeat(face[None], 50, axis=0)
    still = real.copy()
    real[:, list(landmarks.BROWS), 1] += rng.normal(0, 3, (50, 1))
    assert landmarks.upper_face_deviation(still, real) > 0
    assert landmarks.upper_face_deviation(real, still) < 0
    assert landmarks.upper_face_deviation(real, real) == 0


# lips


def wave(seconds: float = 4.0, rate: float = RATE) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return 0.1 + 0.06 * np.sin(2 * np.pi * 2.3 * t) + 0.04 * np.sin(2 * np.pi * 0.7 * t + 1)


def test_lip_motion_known_answers():
    real = wave()
    assert lips.correlation(real, real) == pytest.approx(1)
    assert lips.amplitude_ratio(0.5 * real, real) == pytest.approx(0.5)
    assert lips.rms_error(real + 0.01, real) == pytest.approx(0.01)
    assert lips.explained(real + 3, real) == pytest.approx(1)
    assert lips.explained(np.full_like(real, 0.2), real) == pytest.approx(0)
    assert lips.correlation(np.zeros_like(real), real) == 0
    assert np.isnan(lips.correlation(real, np.zeros_like(real)))
    assert lips.concordance(real, real) == pytest.approx(1)
    assert lips.concordance(real + 0.5, real) < 0.2


def test_wrong_motion_explains_less_than_none(rng):
    real, other = wave(8), rng.permutation(wave(8))
    assert lips.explained(other, real) < lips.explained(np.zeros_like(real), real)


def test_closures_found_missed_and_invented():
    real = np.full(100, 0.1)
    real[20:23] = real[50:54] = real[80:82] = 0.0
    same = lips.closures(real, real, RATE)
    assert (same.real, same.recall, same.precision, same.f1) == (3, 1, 1, 1)
    part = np.full(100, 0.1)
    part[21:23] = 0.01  # hit
    part[35:38] = 0.0  # invented
    got = lips.closures(part, real, RATE)
    assert got.recall == pytest.approx(1 / 3)
    assert got.precision == pytest.approx(1 / 2)


def test_a_shut_mouth_makes_no_closures():
    real = np.full(100, 0.1)
    real[50:54] = 0.0
    shut = lips.closures(np.zeros(100), real, RATE)
    assert (shut.predicted, shut.recall, shut.f1) == (0, 0, 0)


def test_only_a_moved_sound_is_no_control_free_of_rhythm(rng):
    """Clips that share a template (rest, six words, rest): another clip's motion explains some of
    it when begun at the same moment, and none when begun at moments that have nothing to do with it.
    """
    rest = np.convolve(np.repeat([0.0, 1, 0], [15, 45, 15]), np.hanning(9) / 4, "same")
    clips = [rest * (1 + 0.5 * rng.normal(size=75)) for _ in range(40)]
    half = len(clips) // 2
    aligned, moved = [], []
    for k, real in enumerate(clips):
        other = clips[(k + half) % len(clips)]
        phase = (k + 0.5) / len(clips)
        aligned.append(lips.explained(other, real))
        moved.append(lips.explained(np.roll(other, -round(phase * len(other))), real))
    assert np.mean(aligned) > 0.05  # a still mouth scores 0
    assert np.mean(moved) < -0.8  # wrong motion of full amplitude: -1 in the mean
    assert abs(np.mean(moved) + 1) < 0.3


def test_the_wrong_sound_is_all_of_another_clip_entered_elsewhere():
    other = np.arange(1, 801, dtype=np.float32)
    same = rows.wrong_sound(other, 800, 0.0)
    assert np.array_equal(same[160:640], other[160:640])  # 10 ms of fade at the joint
    assert same[0] < 1
    moved = rows.wrong_sound(other, 1000, 0.5)
    assert np.array_equal(moved[:800], np.roll(same, -400))
    assert np.array_equal(moved[800:], moved[:200])
    assert np.array_equal(other, np.arange(1, 801))
    assert not rows.wrong_sound(np.zeros(0, np.float32), 50, 0.3).any()


# sync


def test_three_frames_at_25_fps_are_120_ms():
    real = wave() + np.random.default_rng(0).normal(0, 0.01, 100)
    late = sync.offset(sync.shift_signal(real, 3), real, RATE)
    assert late.offset_ms == pytest.approx(120, abs=4)
    assert late.confidence > 0.3
    assert sync.offset(sync.shift_signal(real, -3), real, RATE).offset_ms == pytest.approx(
        -120, abs=4
    )
    assert sync.offset(real, real, RATE).offset_ms == pytest.approx(0, abs=1e-6)


def test_a_still_mouth_has_no_sync():
    got = sync.offset(np.zeros(100), wave(), RATE)
    assert np.isnan(got.offset_ms)
    assert got.confidence == 0


def test_shifts_put_in_are_found(rng):
    noise = np.convolve(rng.normal(size=400), np.hanning(9), "same")
    errors = sync.shift_errors(noise + 0.5 * rng.normal(size=400), noise, RATE, range(-15, 16))
    assert np.mean(np.abs(errors) <= 1) >= 0.9


# image


def picture(rng, size: int = 64) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 2)


def test_psnr_known_answers(rng):
    a = picture(rng)
    assert image.psnr(a, a) == float("inf")
    black, grey = np.zeros_like(a), np.full_like(a, 51)  # 51/255 = 0.2
    assert image.psnr(grey, black) == pytest.approx(-20 * np.log10(0.2))


def test_a_moved_head_is_moved_back(rng, face):
    """A crop at a fixed place sees the head's move; with the head moved back, the mouths agree."""
    import cv2

    still = cv2.resize(picture(rng, 50), (400, 400), interpolation=cv2.INTER_CUBIC)
    matrix = cv2.getRotationMatrix2D((200, 200), 6, 1.05) + np.array([[0, 0, 9], [0, 0, -5]])
    moved = cv2.warpAffine(still, matrix, (400, 400), flags=cv2.INTER_CUBIC)
    points = face.copy()
    points[:, :2] = face[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    back = image.onto_face(moved, points, face)
    inner = (slice(80, 320), slice(80, 320))
    assert image.psnr(back[inner], still[inner]) > image.psnr(moved[inner], still[inner]) + 10
    assert np.array_equal(image.onto_face(still, face, face), still)


def test_ssim_agrees_with_scikit_image(rng):
    metrics = pytest.importorskip("skimage.metrics")
    cv2 = pytest.importorskip("cv2")
    a = picture(rng)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    gray = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(float) for x in (a, b)]
    theirs = metrics.structural_similarity(
        *gray, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert image.ssim(a, b) == pytest.approx(theirs, abs=2e-3)
    assert image.ssim(a, a) == pytest.approx(1)


def test_sharpness_falls_with_blur(rng):
    import cv2

    a = rng.integers(0, 256, (96, 96, 3), np.uint8)
    assert image.sharpness(cv2.GaussianBlur(a, (0, 0), 1)) < 0.3 * image.sharpness(a)
    assert image.sharpness(np.full((20, 20, 3), 9, np.uint8)) == 0


def test_boxes_stay_in_the_frame(face):
    x0, y0, x1, y1 = image.mouth_box(face - [195, 195, 0], (300, 300, 3))
    assert 0 <= x0 < x1 <= 300
    assert 0 <= y0 < y1 <= 300


# temporal


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_frozen_video_is_still():
    frames = [np.full((32, 32, 3), 80, np.uint8)] * 8
    assert temporal.frame_variance(frames) == 0
    assert temporal.flicker(frames, np.ones((32, 32), bool)) == 0
    real, steps = temporal.real_motion(frames), temporal.step_distances(frames, difference)
    assert temporal.tof(frames, real) == 0
    assert temporal.warping_error(frames, real) == 0
    assert temporal.tlp(frames, steps, difference) == 0


def test_flicker_counts_only_static_pixels():
    frames = [np.zeros((8, 8, 3), np.uint8) for _ in range(3)]
    frames[1][:, :4] += 10
    static = np.zeros((8, 8), bool)
    static[:, :4] = True
    assert temporal.flicker(frames, static) == pytest.approx(10)
    assert temporal.flicker(frames, ~static) == 0


def test_frame_variance_of_a_known_blink():
    frames = [np.full((4, 4, 3), v, np.uint8) for v in (10, 20)]
    assert temporal.frame_variance(frames) == pytest.approx(25)


def test_tlp_is_the_difference_of_steps():
    def level(v):
        return np.full((4, 4, 3), v, np.uint8)

    def distance(a, b):
        return abs(float(a.mean()) - float(b.mean())) / 100

    out = [level(10 * t) for t in range(9)]
    still = [level(5)] * 9
    assert temporal.tlp(out, temporal.step_distances(still, distance), distance) == pytest.approx(
        10
    )


def test_moving_picture_is_tracked_by_flow(rng):
    base = picture(rng, 96)
    real = [np.roll(base, 2 * t, axis=1)[16:80, 16:80] for t in range(8)]
    still, known = [real[0]] * 8, temporal.real_motion(real)
    assert temporal.tof(still, known) == pytest.approx(2, abs=0.6)
    # a clip that follows the flow has nearly no warping error; shuffled frames have more
    shuffled = [real[i] for i in (3, 0, 6, 1, 7, 2, 5, 4)]
    assert temporal.warping_error(real, known) < 0.2 * temporal.warping_error(shuffled, known)


def test_jitter_ignores_the_head_and_sees_trembling(face, rng):
    t = np.arange(40) / RATE
    real = np.repeat(face[None], 40, axis=0)
    real[:, list(landmarks.LIPS), 1] += 5 * np.sin(2 * np.pi * 3 * t)[:, None]
    turned = np.stack([turn(f, 8 * np.sin(k / 5), 1) for k, f in enumerate(real)])
    assert temporal.jitter_ratio(turned, real, landmarks.LIPS) == pytest.approx(1, rel=1e-6)
    trembling = real.copy()
    trembling[:, list(landmarks.LIPS)] += rng.normal(0, 2, (40, 40, 3))
    assert temporal.jitter_ratio(trembling, real, landmarks.LIPS) > 2


def test_jerk_prefers_smooth():
    t = np.linspace(0, 1, 200)
    smooth = 10 * t**3 - 15 * t**4 + 6 * t**5
    rough = smooth + 0.01 * np.sin(2 * np.pi * 30 * t)
    assert temporal.log_dimensionless_jerk(smooth, 200) > temporal.log_dimensionless_jerk(
        rough, 200
    )


# expressiveness


def test_frozen_face_has_no_expression():
    still = np.zeros(250)
    assert expressiveness.blinks(still, still, RATE).rate_per_minute == 0
    assert not expressiveness.head_range(np.zeros((250, 3))).any()
    assert expressiveness.prosody_correlation(still, wave(10)) == 0
    assert expressiveness.diversity(np.zeros((3, 50, 4))) == 0
    assert expressiveness.band_power(still, RATE).sum() == 0


def test_blinks_are_counted_and_timed():
    left = np.zeros(1500)  # one minute
    for start in (100, 400, 900, 1200):
        left[start : start + 5] = 1  # 200 ms
    left[700:760] = 1  # eyes shut for 2.4 s is no blink
    got = expressiveness.blinks(left, 0.9 * left, RATE)
    assert (got.count, got.rate_per_minute, got.duration_ms) == (4, 4, 200)
    assert got.asymmetry == pytest.approx(0.1 * left.mean())


def test_band_power_of_a_sine():
    t = np.arange(1000) / 50
    power = expressiveness.band_power(4 * np.sin(2 * np.pi * 1.5 * t), 50)
    assert power[2] == pytest.approx(8, rel=0.02)  # A²/2 in the 1-2 Hz band
    assert power.sum() == pytest.approx(power[2], rel=0.02)


def test_beats_on_the_beat():
    times = np.array([0.5, 1.0, 1.5])
    assert expressiveness.beat_alignment(times, times) == 1
    assert expressiveness.beat_alignment(times + 0.1, times) == pytest.approx(np.exp(-0.5))
    nods = np.cos(2 * np.pi * np.arange(200) / 50)  # turns every half second at 50 Hz
    beats = expressiveness.motion_beats(nods, 50)
    assert np.allclose(np.diff(beats), 0.5, atol=0.05)


# silence


def voice(pattern: str) -> np.ndarray:
    """PCM from a string: ``s`` half a second of sound, ``.`` half a second of nothing."""
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(8000) / 16000)
    return np.concatenate([tone if c == "s" else np.zeros(8000) for c in pattern]).astype(
        np.float32
    )


def test_speech_mask_and_closing_time():
    speech = silence.speech_mask(voice(".ss.."))
    assert silence.spans(speech) == [(50, 150)]
    opening = np.full(125, 0.1)  # 50 Hz
    opening[:25] = 0
    opening[75 + 6 :] = 0.0  # shuts 120 ms after the end
    assert silence.closing_times_ms(opening, speech, 50).tolist() == [120]
    never = np.full(125, 0.1)
    assert silence.closing_times_ms(never, speech, 50).tolist() == [1500]
    deviation, mean = silence.motion_in_silence(opening, speech, 50)
    assert deviation == 0
    assert mean == 0


def test_a_jump_at_the_seam_is_seen(rng):
    t = np.arange(500) / 50
    smooth = np.stack([np.sin(2 * np.pi * t), np.cos(2 * np.pi * t)], axis=1)
    jump = smooth.copy()
    jump[250:] += 2
    seams = np.array([250])
    assert silence.seam_peak_ratio(smooth, seams, 50) == pytest.approx(1, abs=0.1)
    assert silence.seam_peak_ratio(jump, seams, 50) > 5


# latency


def test_percentiles_and_waterfall():
    got = latency.spread(np.arange(1, 101))
    assert (got.p50_ms, got.count) == (50.5, 100)
    assert got.p99_ms == pytest.approx(99.01)
    now = iter([0.0, 0.002, 0.002, 0.005])
    timer = latency.StageTimer(lambda: next(now))
    timer.measure("motion", lambda: None)
    timer.measure("render", lambda: None)
    rows = latency.waterfall(timer.spreads())
    assert [r[0] for r in rows] == ["motion", "render"]
    assert rows[1][1:] == pytest.approx((2, 3))
    assert latency.real_time_factor(10, 5) == 2
    assert latency.core_ms_per_frame(0.3, 30) == pytest.approx(10)
    assert latency.peak_rss_mb() > 10


def test_energy_counter_is_read_or_said_to_be_missing(tmp_path):
    assert latency.energy_joules(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2500000\n")
    assert latency.energy_joules(tmp_path) == 2.5


# statistics


def test_bootstrap_covers_and_counts():
    values = np.random.default_rng(1).normal(3, 1, 60)
    got = stats.bootstrap(np.append(values, np.nan))
    assert got.count == 60
    assert got.low < 3 < got.high
    assert got.high - got.low == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.25)
    assert stats.bootstrap(np.array([np.nan])).count == 0


def test_paired_tests_know_their_answers():
    a = np.arange(8.0)
    assert stats.sign_flip_test(a + 1, a) == pytest.approx(2 / 256)
    assert stats.sign_flip_test(a, a) == 1
    assert stats.binomial_test(8, 0) == pytest.approx(2 / 256)
    assert stats.binomial_test(4, 4) == 1


def test_t_interval_of_p910():
    got = stats.t_interval(np.array([1, 2, 3, 4, 5]))
    assert got.mean == 3
    assert got.high - got.mean == pytest.approx(2.776 * np.sqrt(2.5) / np.sqrt(5), rel=1e-3)
