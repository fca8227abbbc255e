"""What stands between a session and aiortc: VP8 packets, the queue of them, the microphone's packets."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

import av

from visavis.clock import ManualClock
from visavis.serve.coders import Parcel
from visavis.serve.jitter import VoiceBuffer
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import BLOCKS_HELD, FRAMES_HELD
from visavis.serve.rtc import RtcOutlet, take_at_once
from visavis.serve.vp8 import RAISE_FRAMES, Vp8, to_yuv
from visavis.session import AudioBlock, VideoFrame

FPS = Fraction(30)


def picture(index, size=64):
    """A gradient that moves."""
    y, x = np.mgrid[:size, :size]
    return np.stack([(x + 3 * index) % 256, y * 2 % 256, (x + y) % 256], -1).astype(np.uint8)


def decoded(packets):
    decoder = av.CodecContext.create("libvpx", "r")
    return [frame for packet in packets for frame in decoder.decode(av.Packet(bytes(packet)))]


# --- VP8 -----------------------------------------------------------------------------------------


def test_each_frame_is_one_packet_with_its_pts_and_looks_as_drawn():
    encoder = Vp8()
    packets = [encoder.encode(picture(i), i, FPS) for i in range(8)]
    assert [p.pts for p in packets] == [3000 * i for i in range(8)]
    assert [p.is_keyframe for p in packets] == [True] + [False] * 7
    for i, frame in enumerate(decoded(packets)):
        drawn = to_yuv(picture(i)).to_ndarray().astype(float)
        assert np.abs(frame.to_ndarray(format="yuv420p") - drawn).mean() < 6


def test_a_key_frame_comes_when_wanted_and_when_the_size_changes():
    encoder = Vp8()
    packets = [encoder.encode(picture(0), 0, FPS), encoder.encode(picture(1), 1, FPS)]
    encoder.want_key()
    packets += [encoder.encode(picture(2), 2, FPS), encoder.encode(picture(3), 3, FPS)]
    packets.append(encoder.encode(picture(4, 32), 4, FPS))
    assert [p.is_keyframe for p in packets] == [True, False, True, False, True]
    assert [f.width for f in decoded(packets)] == [64, 64, 64, 64, 32]


def test_the_rate_follows_the_network_down_at_once_and_up_slowly():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encoder = Vp8(bitrate=2_000_000)

    def key(index):
        return encoder.encode(noise, index, FPS).is_keyframe

    assert [key(0), key(1)] == [True, False]
    encoder.aim(1_900_000)
    assert not key(2), "a small change is not worth a key frame"
    encoder.aim(400_000)
    assert key(3)
    encoder.aim(2_000_000)
    assert [key(i) for i in range(4, 4 + RAISE_FRAMES + 2)].index(True) == RAISE_FRAMES


# --- the queue -----------------------------------------------------------------------------------


class Made:
    """An RTC outlet on a manual clock, with sound and frames to offer."""

    def __init__(self):
        self.clock = ManualClock()
        self.outlet = RtcOutlet(self.clock, 0, Metrics())
        coder = self.coder = self.outlet.coder()
        self.outlet.tell = lambda verb, *args: getattr(coder, verb)(*args)
        self.frames = self.blocks = 0

    def asked(self):
        """Someone is there to take things."""

        async def ask():
            for kind in ("audio", "video"):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(self.outlet.next(kind), 0.01)

        asyncio.run(ask())
        return self

    def frame(self, epoch=0):
        item = VideoFrame(self.frames, FPS, picture(self.frames), epoch, 0, "mesh", 0)
        self.outlet.offer(Parcel("video", epoch, self.clock.now(), self.coder.frame(item)))
        self.frames += 1

    def block(self, epoch=0, level=0.5):
        pcm = np.full(960, level, np.float32)
        item = AudioBlock(960 * self.blocks, 48_000, pcm, epoch, 0)
        self.outlet.offer(Parcel("audio", epoch, self.clock.now(), self.coder.block(item)))
        self.blocks += 1

    def take(self, kind, count):
        async def some():
            return [(await asyncio.wait_for(self.outlet.next(kind), 5)).ready for _ in range(count)]

        return asyncio.run(some())


def test_no_frame_leaves_without_those_it_builds_on():
    made = Made().asked()
    made.frame()
    assert made.take("video", 1)[0].is_keyframe
    for _ in range(FRAMES_HELD + 3):
        made.frame()
    # the queue ran over: all that waited is gone, and what follows begins with a key frame
    packets = made.take("video", 2)
    assert packets[0].is_keyframe
    assert packets[0].pts == 3000 * (FRAMES_HELD + 2)
    made.frame()
    assert len(decoded(packets + made.take("video", 1))) == 3


def test_an_interruption_silences_sound_and_leaves_the_chain_of_frames_whole():
    made = Made().asked()
    made.frame()
    made.block()
    made.take("video", 1), made.take("audio", 1)
    made.frame()
    made.block()
    made.outlet.interrupt()
    made.frame(epoch=0)  # drawn before the session heard of it
    made.block(epoch=0)
    assert [p.is_keyframe for p in made.take("video", 2)] == [False, False]
    assert [np.abs(b.to_ndarray()).max() for b in made.take("audio", 2)] == [0, 0]


def test_what_waited_before_the_first_question_is_not_sent_in_a_burst():
    made = Made()
    for _ in range(4):
        made.frame()
        made.block()
        made.clock.advance(20_000_000)
    made.block()
    assert made.take("audio", 1)[0].pts == 960 * 4
    asyncio.run(nothing(made))
    made.frame()
    packet = made.take("video", 1)[0]
    assert packet.is_keyframe
    assert packet.pts == 3000 * 4


async def nothing(made):
    with pytest.raises(TimeoutError):  # stale frames are not sent
        await asyncio.wait_for(made.outlet.next("video"), 0.01)


def test_sound_is_bounded():
    made = Made().asked()
    made.block()
    made.take("audio", 1)
    for _ in range(BLOCKS_HELD + 10):
        made.block()
    assert made.take("audio", 1)[0].pts == 960 * 11


# --- the microphone ------------------------------------------------------------------------------


def packets(numbers):
    return [
        SimpleNamespace(
            sequence_number=n % 65536, _data=bytes([n % 251]), timestamp=960 * n, payload_type=96
        )
        for n in numbers
    ]


def through(numbers):
    out = []
    buffer = VoiceBuffer(lambda frame, kind: out.append(frame.timestamp // 960))
    for packet in packets(numbers):
        _, frame = buffer.add(packet)
        if frame is not None:
            out.append(frame.timestamp // 960)
    return out


def test_packets_in_order_pass_at_once():
    buffer = VoiceBuffer(lambda frame, kind: pytest.fail("nothing else was ready"))
    for packet in packets(range(65530, 65545)):
        assert buffer.add(packet)[1].timestamp == packet.timestamp


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([5, 7, 6, 8], [5, 6, 7, 8]),
        ([5, 8, 7, 6, 9], [5, 6, 7, 8, 9]),
        ([5, 7, 8, 9, 10], [5, 7, 8, 9, 10]),  # 6 was lost: given up after two more
        ([5, 6, 6, 5, 7], [5, 6, 7]),  # copies
        ([5, 6, 3000, 3001], [5, 6, 3000, 3001]),  # another stream
        ([65535, 65537, 65536, 65538], [65535, 65536, 65537, 65538]),
    ],
)
def test_packets_out_of_order_are_put_in_order(given, expected):
    assert through(given) == expected


def test_a_lost_packet_costs_no_lasting_delay():
    buffer = VoiceBuffer(lambda frame, kind: None)
    *_, last = [buffer.add(p)[1] for p in packets([0, 1, 3, 4, 5, 6])]
    assert last.timestamp == 960 * 6


async def test_aiortc_still_has_what_is_replaced_in_it():
    """Private names of aiortc: a new release that renames them must be noticed."""
    from aiortc import RTCPeerConnection

    from visavis.serve import rtc

    pc = RTCPeerConnection()
    transceiver = pc.addTransceiver("audio")
    take_at_once(transceiver.receiver)
    inside = vars(transceiver.receiver)
    assert isinstance(inside["_RTCRtpReceiver__jitter_buffer"], VoiceBuffer)
    video = pc.addTransceiver("video")
    outlet, told = RtcOutlet(ManualClock(), 0, Metrics()), []
    outlet.tell = lambda *said: told.append(said)
    rtc.listen_to_network(video.sender, outlet)
    vars(video.sender)["_RTCRtpSender__encoder"].target_bitrate = 700_000
    video.sender._send_keyframe()
    assert told == [("aim", 700_000), ("want_key",)]
    await pc.close()
