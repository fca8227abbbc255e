"""Integer time: exact at any rate, however late."""

from __future__ import annotations

from fractions import Fraction

import pytest

from visavis.clock import ManualClock, MonotonicClock, frame_count, frame_position, frame_sample


def test_clocks():
    clock = ManualClock(5)
    clock.advance(7)
    assert clock.now() == 12
    with pytest.raises(AssertionError):
        clock.advance(-1)
    machine = MonotonicClock()
    assert machine.now() <= machine.now()


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60)])
def test_frame_position_is_exact_for_ever(fps):
    for index in (0, 1, 7, 30, 10**9):
        whole, weight = frame_position(index, fps)
        assert 0 <= weight < 1
        assert (whole + weight) / 50 == index / fps
    assert frame_position(25, Fraction(25)) == (50, 0)
    assert frame_position(1, Fraction(30)) == (1, Fraction(2, 3))


def test_frame_count_rounds():
    assert frame_count(0, Fraction(30)) == 0
    assert frame_count(1, Fraction(30)) == 1
    assert frame_count(16_000, Fraction(30)) == 30
    assert frame_count(16_266, Fraction(30)) == 30
    assert frame_count(16_267, Fraction(30)) == 31
    assert frame_count(16_000 * 3600, Fraction(30000, 1001)) == 107_892


def test_frame_sample():
    assert [frame_sample(k, Fraction(30)) for k in range(4)] == [0, 534, 1067, 1600]
