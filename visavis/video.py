"""Video out and in: frames and sound to MP4 or WebM at a constant rate; any film to RGB frames.

Time is integers: frame k is shown at k / fps, sound is cut or filled to exactly frames / fps.
``OUT.mp4`` is H.264 + AAC, ``OUT.webm`` VP9 + Opus (no patent pool, no GPL encoder).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock

import av
import cv2
import numpy as np

from visavis.errors import ConfigError, OutputError, VideoError
from visavis.media import decoded_frames, open_media, origin, reason, replacing

SoundBlocks = Iterator[tuple[np.ndarray, int]]
"""``(N, C)`` float32 in [-1, 1] and its rate in Hz, as `visavis.audio.decode_audio` yields them."""

ENCODE_AHEAD = 3  # pictures that may wait for the encoder
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
BT601_MATRIX, BT709_PRIMARIES, SRGB_TRANSFER, LIMITED_RANGE = 6, 1, 13, 1  # ITU-T H.273


@dataclass(frozen=True)
class Format:
    """One way to write a film. ``qualities`` are encoder options by name."""

    video: str
    audio: str
    audio_rates: tuple[int, ...]  # the source's rate if listed, else the first
    container: dict[str, str]
    qualities: dict[str, dict[str, str]]


# Core-ms per 512x512 frame of a moving portrait, one thread, and size (benchmarks/encoders.py):
# x264 ultrafast 2.3-2.7 (3.4 Mbit/s at crf 18), superfast 3.5 (1.2), veryfast 4.5 (0.6), faster 9;
# VP9 cpu-used 8: 3.8-5.5, 7: 7.7, 6: 9.1; VP8 cpu-used 8: 8.5.
# No B-frames: the first frame is decodable at time 0 without an edit list.
FORMATS = {
    ".mp4": Format(
        "libx264",
        "aac",
        (48_000, 44_100),
        {"movflags": "+faststart"},
        {
            "draft": {"preset": "ultrafast", "crf": "24", "bf": "0"},
            "standard": {"preset": "veryfast", "crf": "17", "bf": "0"},
            "high": {"preset": "faster", "crf": "14", "bf": "0"},
        },
    ),
    ".webm": Format(
        "libvpx-vp9",
        "libopus",
        (48_000,),
        {},
        {
            name: {
                "deadline": "realtime",
                "cpu-used": speed,
                "row-mt": "1",
                "tile-columns": "1",
                "crf": crf,
                "b": "0",
            }
            for name, speed, crf in (
                ("draft", "8", "34"),
                ("standard", "8", "22"),
                ("high", "6", "16"),
            )
        },
    ),
}
QUALITIES = tuple(FORMATS[".mp4"].qualities)


class VideoWriter:
    """Writes a film; use it in a ``with`` statement.

    The file appears under its name, whole, when the block ends well; on any exception (Ctrl-C
    too) nothing is left and an older file of that name stays. Sound comes either from ``sound``,
    read along as frames are written, or from `push_sound`; without either the film is silent.

    Args:
        path: ends in ``.mp4`` or ``.webm``.
        fps: frames per second.
        size: width and height in pixels, even.
        sound: blocks of sound, pulled as needed, never held whole.
        sound_format: ``(rate, channels)`` of what `push_sound` will bring.
        quality: ``draft``, ``standard`` or ``high``.
        threads: of the video encoder.

    Raises:
        OutputError: unknown suffix, folder that cannot be written, full disk.
        ConfigError: odd size, bad rate, unknown quality.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction,
        size: tuple[int, int],
        sound: SoundBlocks | None = None,
        sound_format: tuple[int, int] | None = None,
        quality: str = "standard",
        threads: int = 2,
    ):
        self._path, self._fps, self._size = Path(path), Fraction(fps), size
        self._threads, self._quality = threads, quality
        if self._path.suffix.lower() not in FORMATS:
            raise OutputError(
                f"{path} ends in '{self._path.suffix}'; expected {' or '.join(FORMATS)}"
            )
        if quality not in QUALITIES:
            raise ConfigError(f"quality {quality!r}; expected one of {', '.join(QUALITIES)}")
        if min(size) < 16 or size[0] % 2 or size[1] % 2:
            raise ConfigError(f"size {size[0]}x{size[1]}; expected even numbers of 16 or more")
        if not 1 <= self._fps <= 240:
            raise ConfigError(f"{fps} frames per second; expected 1 to 240")
        self._format = FORMATS[self._path.suffix.lower()]
        self._sound, self._sound_format = sound, sound_format
        self._stack: ExitStack | None = None
        self.frames = 0  # written so far

    def __enter__(self) -> VideoWriter:
        first = None
        if self._sound is not None:  # opened first: a bad sound file must not touch the output
            first = next(self._sound, None)
            if first is not None:
                self._sound_format = (first[1], first[0].shape[1])
        with ExitStack() as stack:
            stack.callback(getattr(self._sound, "close", lambda: None))
            temporary = stack.enter_context(replacing(self._path))
            stack.enter_context(_as_output_error(self._path))
            container = av.open(str(temporary), "w", options=self._format.container)
            stack.callback(container.close)
            self._container = container
            self._video = self._add_video(container)
            self._track = None
            if self._sound_format is not None:
                self._track = _SoundTrack(container, self._format, *self._sound_format)
                if first is not None:
                    self._track.feed(*first)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        assert self._stack is not None, "VideoWriter is used in a with statement"
        stack, self._stack = self._stack, None
        if error is not None:
            stack.__exit__(kind, error, trace)
            return
        with stack:
            if self.frames == 0:
                raise OutputError(f"no frame to write to {self._path}; expected at least one")
            self._container.mux(self._video.encode(None))
            if self._track is not None:
                self._pull_sound()
                self._track.finish(self._sound_end(self._track.rate))

    def write(self, image: np.ndarray) -> None:
        """Append the next frame, ``(H, W, 3)`` uint8 RGB.

        Raises:
            OutputError: the disk is full or the encoder fails.
        """
        width, height = self._size
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            raise ConfigError(
                f"frame of shape {image.shape} {image.dtype}; expected ({height}, {width}, 3) uint8"
            )
        frame = av.VideoFrame.from_ndarray(
            cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), format="yuv420p"
        )
        frame.colorspace, frame.color_range = BT601_MATRIX, LIMITED_RANGE
        frame.pts, frame.time_base = self.frames, 1 / self._fps
        self._container.mux(self._video.encode(frame))
        self.frames += 1
        if self._track is not None:
            self._pull_sound()
            self._track.encode_until(self._sound_end(self._track.rate))

    def push_sound(self, pcm: np.ndarray) -> None:
        """Append sound, ``(N,)`` or ``(N, C)`` float32 as ``sound_format`` announced it.

        What runs past the last frame is cut; what is missing at the end is silence.
        """
        assert self._sound_format is not None, "made without sound_format"
        self._track.feed(pcm[:, None] if pcm.ndim == 1 else pcm, self._sound_format[0])

    def _add_video(self, container: av.container.OutputContainer) -> av.VideoStream:
        stream = container.add_stream(self._format.video, rate=self._fps)
        stream.width, stream.height = self._size
        stream.pix_fmt, stream.time_base = "yuv420p", 1 / self._fps
        context = stream.codec_context
        context.thread_count, context.gop_size = self._threads, round(2 * self._fps)
        context.colorspace, context.color_range = BT601_MATRIX, LIMITED_RANGE
        context.color_primaries, context.color_trc = BT709_PRIMARIES, SRGB_TRANSFER
        stream.options = self._format.qualities[self._quality]
        return stream

    def _sound_end(self, rate: int) -> int:
        return round(self.frames * rate / self._fps)

    def _pull_sound(self) -> None:
        while self._sound is not None and self._track.received < self._sound_end(self._track.rate):
            block = next(self._sound, None)
            if block is None:
                self._sound = None
                self._track.drain()
            else:
                self._track.feed(*block)


def write_all(
    film: VideoWriter, images: Iterable[np.ndarray], progress: Callable[[int], None] | None = None
) -> int:
    """Write pictures as they come; one is encoded while the next is made.

    Args:
        film: an open writer.
        images: ``(H, W, 3)`` uint8 RGB each, not changed afterwards.
        progress: called with the number of pictures handed over.

    Returns:
        How many were written.

    Raises:
        OutputError: as `VideoWriter.write`.
    """
    waiting: deque[Future[None]] = deque()
    count = 0
    turn, open_ = Lock(), [True]

    def put(image: np.ndarray) -> None:
        with turn:  # Ctrl-C while the thread starts must not leave it writing to a closed film
            if open_[0]:
                film.write(image)

    with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder, ExitStack() as stack:
        stack.callback(_shut, turn, open_)
        for image in images:
            waiting.append(encoder.submit(put, image))
            count += 1
            if len(waiting) > ENCODE_AHEAD:
                waiting.popleft().result()
            if progress:
                progress(count)
        for one in waiting:
            one.result()
    return count


def _shut(turn: Lock, open_: list[bool]) -> None:
    with turn:
        open_[0] = False


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise OutputError(
            f"cannot write {path} ({reason(error)}): free some space or choose another folder"
        ) from None


class _SoundTrack:
    """The sound half of a film: converts, queues and encodes up to a given sample."""

    def __init__(
        self, container: av.container.OutputContainer, form: Format, rate: int, channels: int
    ):
        self.rate = rate if rate in form.audio_rates else form.audio_rates[0]
        self._layout = "stereo" if channels in LAYOUTS and channels > 1 else "mono"
        self._container = container
        self._stream = container.add_stream(form.audio, rate=self.rate)
        self._stream.layout = self._layout
        self._stream.bit_rate = 96_000 * (1 + (self._layout == "stereo"))
        self._stream.time_base = Fraction(1, self.rate)
        self._queue: deque[np.ndarray] = deque()  # (C, N) float32 at self.rate
        self._resampler, self._resampler_input = None, None
        self.received = self._sent = 0  # samples at self.rate

    def feed(self, block: np.ndarray, rate: int) -> None:
        """Queue ``(N, C)`` float32 at ``rate``."""
        if block.shape[1] not in LAYOUTS:
            block = block.mean(axis=1, keepdims=True)
        layout = LAYOUTS[block.shape[1]]
        if (rate, layout) != self._resampler_input:
            self.drain()
            self._resampler = av.AudioResampler("fltp", self._layout, self.rate)
            self._resampler_input = (rate, layout)
        packed = np.ascontiguousarray(block, np.float32).reshape(1, -1)  # 8 planes crash PyAV 18
        frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
        frame.sample_rate = rate
        self._keep(self._resampler.resample(frame))

    def drain(self) -> None:
        """Take what the converter still holds."""
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler, self._resampler_input = None, None

    def _keep(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray()
            self._queue.append(samples)
            self.received += samples.shape[1]

    def encode_until(self, end: int) -> None:
        """Encode queued samples, no further than sample ``end``."""
        while self._queue and self._sent < end:
            samples = self._queue.popleft()
            room = end - self._sent
            if samples.shape[1] > room:
                self._queue.appendleft(samples[:, room:])
                samples = samples[:, :room]
            self._encode(samples)

    def finish(self, end: int) -> None:
        """Encode to exactly ``end`` samples, silence where there are none, and close."""
        self.drain()
        self.encode_until(end)
        channels = 1 if self._layout == "mono" else 2
        while self._sent < end:
            self._encode(np.zeros((channels, min(end - self._sent, self.rate)), np.float32))
        self._container.mux(self._stream.encode(None))

    def _encode(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", self._layout)
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self._sent
        self._sent += samples.shape[1]
        self._container.mux(self._stream.encode(frame))


# --- in ------------------------------------------------------------------------------------------

EXPECTED = "a film such as MP4, MOV, WebM or MKV"


@dataclass(frozen=True)
class VideoInfo:
    """What the header says. ``width`` and ``height`` are as shown, after rotation."""

    width: int
    height: int
    fps: Fraction | None  # the mean rate; frames may come at any times
    duration: Fraction | None  # seconds
    rotation: int  # degrees, 0, 90, 180 or 270 anticlockwise, already applied by `read_video`
    codec: str
    has_sound: bool


def _video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    if stream is None or stream.codec_context is None or stream.disposition & cover:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(f"{path} has no moving picture (it has {kinds}); expected {EXPECTED}")
    stream.codec_context.thread_count = 1
    return stream


def probe_video(path: str | Path) -> VideoInfo:
    """Read the header and the first frame.

    Raises:
        VideoError: missing, empty, not media, no picture in it, or nothing decodes.
    """
    with open_media(path, VideoError, EXPECTED) as container:
        stream = _video_stream(container, path)
        duration = None
        if stream.duration:
            duration = stream.duration * stream.time_base
        elif container.duration:
            duration = Fraction(container.duration, av.time_base)
        fps, codec = stream.average_rate, stream.codec_context.name
        has_sound = bool(container.streams.audio)
        first = next(
            (f for f in decoded_frames(container, stream) if isinstance(f, av.VideoFrame)), None
        )
        if first is None:
            raise VideoError(f"{path} has no frame that can be decoded; expected {EXPECTED}")
        turn = _rotation(first)
        width, height = (first.width, first.height)[:: -1 if turn in (90, 270) else 1]
        return VideoInfo(width, height, fps, duration, turn, codec, has_sound)


def read_video(
    path: str | Path, on_warning: Callable[[str], None] | None = None
) -> Iterator[tuple[int, Fraction, np.ndarray]]:
    """Decode a film frame by frame, turned upright.

    Args:
        path: any film, constant or variable rate.
        on_warning: called with one line when the file is damaged; what decodes is used.

    Yields:
        frame index; seconds from the start of the film, as for `visavis.audio.decode_audio`;
        ``(H, W, 3)`` uint8 RGB. Times rise strictly.

    Raises:
        VideoError: from the first ``next`` on: see `probe_video`.
    """
    with open_media(path, VideoError, EXPECTED) as container:
        stream = _video_stream(container, path)
        zero, rate = origin(container), stream.average_rate or Fraction(25)
        reformatter = av.video.reformatter.VideoReformatter()
        index, last, damaged = 0, None, None
        for frame in decoded_frames(container, stream):
            if isinstance(frame, Exception):
                damaged = frame
                continue
            time = index / rate if frame.pts is None else frame.pts * frame.time_base - zero
            if last is not None and time <= last:
                continue
            yield index, time, _upright_rgb(frame, reformatter)
            index, last = index + 1, time
        if index == 0:
            why = f" ({reason(damaged)})" if damaged else ""
            raise VideoError(f"{path} has no frame that can be decoded{why}; expected {EXPECTED}")
        if damaged and on_warning:
            on_warning(
                f"{path} is damaged or cut off ({reason(damaged)}): using the {index} frames "
                "that decode"
            )


def _rotation(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) * 90 % 360


def _upright_rgb(
    frame: av.VideoFrame, reformatter: av.video.reformatter.VideoReformatter
) -> np.ndarray:
    unspecified = frame.colorspace == 2
    matrix = "itu709" if unspecified and frame.height >= 720 else None  # HD without a tag is BT.709
    rgb = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
    turn = _rotation(frame)
    return np.ascontiguousarray(np.rot90(rgb, turn // 90)) if turn else rgb
