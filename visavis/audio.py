"""Sound in: any media file or raw PCM to 16 kHz mono float32, as a stream.

``decode_audio`` reads a file block by block at its own rate; ``to_mono`` folds channels;
``Resampler`` and ``HighPass`` are stages; ``AudioIn`` is all three, the door for live sound;
``read_audio`` is ``decode_audio`` through ``AudioIn``. Nothing holds a whole file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numba import njit

from visavis.errors import AudioError
from visavis.media import READ_ERRORS, decoded_frames, open_media, origin, reason
from visavis.types import SAMPLE_RATE, State

MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz
ZERO_CROSSINGS = 32  # of the sinc, each side: 2 ms of look-ahead at 16 kHz and above
ROLLOFF = 0.95  # cut-off over the lower Nyquist frequency: 7.6 kHz
KAISER_BETA = 9.0  # about -90 dB in the stop band
MAX_PHASES = 1024  # more phases than this are interpolated, error below -120 dB
HIGH_PASS_HZ = 20
MAX_LEAD_IN_S = 60  # silence put in front where a film's sound starts late

Warn = Callable[[str], None]


# --- samples -------------------------------------------------------------------------------------


def pcm_to_float(pcm: np.ndarray) -> np.ndarray:
    """Integer or float PCM of any shape to float32 in [-1, 1].

    uint8 is centred at 128; int16 and int32 are divided by 2^15 and 2^31; float is clipped.

    Raises:
        AudioError: another type, or NaN or infinite samples.
    """
    if pcm.dtype == np.uint8:
        return (pcm.astype(np.float32) - 128.0) / 128.0
    if pcm.dtype in (np.int16, np.int32):
        return (pcm / float(-np.iinfo(pcm.dtype).min)).astype(np.float32)
    if pcm.dtype in (np.float32, np.float64):
        if not np.isfinite(pcm).all():
            raise AudioError(
                "sound has NaN or infinite samples; expected finite numbers: repair it"
            )
        return np.clip(pcm, -1.0, 1.0).astype(np.float32)
    raise AudioError(f"PCM of type {pcm.dtype}; expected uint8, int16, int32, float32 or float64")


def _mono_weights(channels: int) -> np.ndarray:
    """``(C,)`` float32, sums to 1. Surround (WAVE order FL FR FC LFE ...) favours the centre."""
    if channels < 6:
        return np.full(channels, 1 / channels, np.float32)
    weights = np.full(channels, 0.5)
    weights[:4] = (2.0, 2.0, 4.0, 0.0)  # speech sits in the centre; no speech in the bass channel
    return (weights / weights.sum()).astype(np.float32)


def to_mono(pcm: np.ndarray) -> np.ndarray:
    """``(..., N, C)`` float32 to ``(..., N)``: the mean; from six channels on, centre first."""
    if pcm.shape[-1] == 1:
        return pcm[..., 0]
    return pcm @ _mono_weights(pcm.shape[-1])


# --- stages --------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _polyphase(x, x0, bank, k0, out, step, per, half):  # pragma: no cover - compiled
    phases = bank.shape[0] - 1
    for k in range(out.shape[0]):
        position = (k0 + k) * step
        base = position // per
        scaled = (position - base * per) * phases
        row = scaled // per
        mix = (scaled - row * per) / per
        start = base - half + 1 - x0
        total = 0.0
        for j in range(2 * half):
            coefficient = bank[row, j] + mix * (bank[row + 1, j] - bank[row, j])
            total += coefficient * x[start + j]
        out[k] = total


class Resampler:
    """Any integer rate to another, windowed sinc, linear phase with its delay taken out.

    A stage. In: ``(B, N)`` float32, or ``(B, N, C)`` with ``channels_in`` = C, which is folded to
    mono first. Out: ``(B, K)`` float32. Output sample k is the input at time k / rate_out exactly.
    ``n`` samples in all give ``ceil(n * rate_out / rate_in)`` out. Equal rates pass through.

    Kaiser-windowed sinc as in J. O. Smith, "Digital Audio Resampling" (CCRMA), one row of
    coefficients per phase; the sum runs in float64 in a fixed order, so chunks change no bit.
    """

    def __init__(self, rate_in: int, channels_in: int = 1, rate_out: int = SAMPLE_RATE):
        for rate in (rate_in, rate_out):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(
                    f"sample rate {rate} Hz; expected {MIN_RATE} to {MAX_RATE}: convert it first"
                )
        if channels_in < 1:
            raise AudioError(f"{channels_in} channels; expected one or more")
        common = math.gcd(rate_in, rate_out)
        self.channels_in = channels_in
        self._step, self._per = rate_in // common, rate_out // common  # input samples per output
        if rate_in == rate_out:
            self.lookahead = 0
            return
        narrow = min(1.0, rate_out / rate_in)
        self._half = math.ceil(ZERO_CROSSINGS / narrow)  # input samples
        self.lookahead = math.ceil(self._half * rate_out / rate_in)  # output samples
        self._bank = _sinc_bank(min(self._per, MAX_PHASES), self._half, ROLLOFF * narrow)

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first sample."""
        if self.lookahead == 0:
            return {}
        return {
            "resample/tail": np.zeros((batch, 2 * self._half - 1), np.float32),
            "resample/received": np.zeros(batch, np.int64),
            "resample/emitted": np.zeros(batch, np.int64),
        }

    def step(self, state: State, pcm: np.ndarray) -> tuple[State, np.ndarray]:
        """``(B, N)`` or ``(B, N, C)`` in, all samples that can be known by now out."""
        mono = to_mono(pcm) if pcm.ndim == 3 else pcm
        if self.lookahead == 0:
            return state, np.ascontiguousarray(mono, np.float32)
        received = int(state["resample/received"][0]) + mono.shape[1]
        # the last output needs the input samples up to floor(k * step / per) + half
        ready = (max(0, received - self._half) * self._per + self._step - 1) // self._step
        return self._emit(state, mono, received, ready)

    def flush(self, state: State) -> np.ndarray:
        """What is left, as if silence followed."""
        batch = len(state["resample/received"]) if state else 1
        if self.lookahead == 0:
            return np.zeros((batch, 0), np.float32)
        received = int(state["resample/received"][0])
        total = (received * self._per + self._step - 1) // self._step
        silence = np.zeros((batch, self._half), np.float32)
        return self._emit(state, silence, received + self._half, total)[1]

    def _emit(
        self, state: State, mono: np.ndarray, received: int, until: int
    ) -> tuple[State, np.ndarray]:
        assert (state["resample/received"] == state["resample/received"][0]).all()
        emitted = int(state["resample/emitted"][0])
        joined = np.concatenate([state["resample/tail"], mono], axis=1, dtype=np.float32)
        out = np.empty((len(joined), max(0, until - emitted)), np.float32)
        for row_in, row_out in zip(joined, out, strict=True):
            first = received - joined.shape[1]  # input index of joined[:, 0]
            _polyphase(
                row_in, first, self._bank, emitted, row_out, self._step, self._per, self._half
            )
        keep = 2 * self._half - 1
        batch = len(joined)
        state = {
            "resample/tail": joined[:, joined.shape[1] - keep :].copy(),
            "resample/received": np.full(batch, received, np.int64),
            "resample/emitted": np.full(batch, max(emitted, until), np.int64),
        }
        return state, out


def _sinc_bank(phases: int, half: int, cutoff: float) -> np.ndarray:
    """``(phases + 1, 2 * half)`` float64: row p holds the taps at fraction p / phases."""
    fraction = np.arange(phases + 1)[:, None] / phases
    time = fraction + half - 1 - np.arange(2 * half)[None, :]  # input samples from the centre
    inside = np.clip(1.0 - (time / half) ** 2, 0.0, None)
    bank = np.sinc(cutoff * time) * np.i0(KAISER_BETA * np.sqrt(inside))
    return bank / bank.sum(axis=1, keepdims=True)


@njit(cache=True, nogil=True)
def _one_pole(x, before, y, pole, out):  # pragma: no cover - compiled
    for i in range(x.shape[0]):
        y = x[i] - before + pole * y
        before = x[i]
        out[i] = y
    return y


class HighPass:
    """Takes a constant offset out: ``y[n] = x[n] - x[n-1] + r y[n-1]``, -3 dB near ``cutoff_hz``.

    A stage, causal: no look-ahead, no mean over the clip. The first sample counts as what came
    before it, so an offset that was always there makes no step.
    """

    lookahead = 0

    def __init__(self, rate: int = SAMPLE_RATE, cutoff_hz: float = HIGH_PASS_HZ):
        self._pole = math.exp(-2 * math.pi * cutoff_hz / rate)

    def init_state(self, batch: int = 1) -> State:
        """Nothing heard yet."""
        return {
            "high_pass/x": np.full(batch, np.nan),  # NaN: no sample yet
            "high_pass/y": np.zeros(batch),
        }

    def step(self, state: State, pcm: np.ndarray) -> tuple[State, np.ndarray]:
        """``(B, N)`` float32 in and out."""
        out = np.empty(pcm.shape, np.float32)
        if pcm.shape[1] == 0:
            return state, out
        before = np.where(np.isnan(state["high_pass/x"]), pcm[:, 0], state["high_pass/x"])
        y = np.empty(len(pcm))
        for i in range(len(pcm)):
            y[i] = _one_pole(pcm[i], before[i], state["high_pass/y"][i], self._pole, out[i])
        return {"high_pass/x": pcm[:, -1].astype(np.float64), "high_pass/y": y}, out

    def flush(self, state: State) -> np.ndarray:
        """Nothing is held back."""
        return np.zeros((len(state["high_pass/y"]), 0), np.float32)


class AudioIn:
    """The door for live sound: channels folded, resampled to 16 kHz, offset removed. A stage.

    In: ``(B, N)`` or ``(B, N, C)`` float32 at ``rate_in``. Out: ``(B, K)`` float32 at 16 kHz.
    """

    def __init__(self, rate_in: int, channels_in: int = 1):
        self._resampler = Resampler(rate_in, channels_in)
        self._high_pass = HighPass()
        self.lookahead = self._resampler.lookahead

    def init_state(self, batch: int = 1) -> State:
        """The states of both stages, side by side."""
        return self._resampler.init_state(batch) | self._high_pass.init_state(batch)

    def step(self, state: State, pcm: np.ndarray) -> tuple[State, np.ndarray]:
        """See the class."""
        low = {k: v for k, v in state.items() if k.startswith("resample/")}
        high = {k: v for k, v in state.items() if k.startswith("high_pass/")}
        low, pcm16k = self._resampler.step(low, pcm)
        high, pcm16k = self._high_pass.step(high, pcm16k)
        return low | high, pcm16k

    def flush(self, state: State) -> np.ndarray:
        """What the resampler still held."""
        low = {k: v for k, v in state.items() if k.startswith("resample/")}
        high = {k: v for k, v in state.items() if k.startswith("high_pass/")}
        if not low:
            return self._high_pass.flush(high)
        return self._high_pass.step(high, self._resampler.flush(low))[1]


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file says; ``duration`` in seconds is a claim, ``None`` if not made."""

    rate: int
    channels: int
    codec: str
    duration: Fraction | None


EXPECTED = "WAV, MP3, M4A, Opus, FLAC or a video with sound"


def _audio_stream(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None or stream.codec_context is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise AudioError(f"{path} has no sound (it has {kinds}); expected a file with sound")
    return stream


def probe_audio(path: str | Path) -> AudioInfo:
    """Read the header only.

    Raises:
        AudioError: missing, empty, not a media file, or without sound.
    """
    path = Path(path)
    with open_media(path, AudioError, EXPECTED) as container:
        stream = _audio_stream(container, path)
        context = stream.codec_context
        return AudioInfo(
            context.sample_rate, context.channels, context.name, _declared(container, stream)
        )


def audio_duration(path: str | Path) -> Fraction | None:
    """Seconds of sound by the file's own account, for progress bars; ``None`` when it says none."""
    return probe_audio(path).duration


def _declared(container: av.container.InputContainer, stream: av.AudioStream) -> Fraction | None:
    if stream.duration is not None and stream.time_base is not None and stream.duration > 0:
        return stream.duration * stream.time_base
    if container.duration is not None and container.duration > 0:
        return Fraction(container.duration, av.time_base)
    return None


def decode_audio(
    path: str | Path, on_warning: Warn | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a file's first choice of sound, block by block, at its own rate and channels.

    Sample 0 is time 0 of the file: where a video's sound starts later than its picture, silence
    is put in front. Damaged packets are left out and reported; so is an early end.

    Args:
        path: any media file.
        on_warning: called with one line when the file could only be used in part.

    Yields:
        ``(N, C)`` float32 in [-1, 1] and the rate in Hz (both may change within odd files).

    Raises:
        AudioError: from the first ``next`` on: unreadable, no sound, nothing decodes, or NaN.
    """
    path = Path(path)
    with open_media(path, AudioError, EXPECTED) as container:
        stream = _audio_stream(container, path)
        seconds, damaged = Fraction(0), None
        for frame in decoded_frames(container, stream):
            if isinstance(frame, Exception):
                damaged = frame
                continue
            block, rate = _samples(frame, path, seconds), frame.sample_rate
            if seconds == 0:
                lead_in = _lead_in(container, frame)
                if lead_in > 0:
                    yield np.zeros((round(lead_in * rate), block.shape[1]), np.float32), rate
            seconds += Fraction(len(block), rate)
            if len(block):
                yield block, rate
        if seconds == 0:
            why = f" ({reason(damaged)})" if damaged else ""
            raise AudioError(
                f"{path} holds no sound that can be decoded{why}; expected at least one sample: "
                "record or copy it again"
            )
        declared = _declared(container, stream)
        guessed = container.format.name in ("mp3", "aac")  # from the bit rate, often wrong
        short = declared is not None and not guessed and declared - seconds > Fraction(1, 2)
        if on_warning and (damaged or short or _riff_is_cut(path)):
            said = f" of the {float(declared):.1f} s it declares" if short else ""
            on_warning(
                f"{path} is damaged or cut off: using the {float(seconds):.1f} s{said} that decode"
            )


def _riff_is_cut(path: Path) -> bool:
    """A WAV shorter than its header says; FFmpeg believes the file size and does not tell."""
    with path.open("rb") as file:
        head = file.read(8)
        size = int.from_bytes(head[4:8], "little")
    streamed = size in (0, 0xFFFFFFFF)  # written before the length was known
    return head[:4] == b"RIFF" and not streamed and size + 8 > path.stat().st_size


def _samples(frame: av.AudioFrame, path: Path, seconds: Fraction) -> np.ndarray:
    """``(N, C)`` float32 of one decoded frame."""
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise AudioError(
            f"{path} has {frame.sample_rate} samples per second; expected {MIN_RATE} to "
            f"{MAX_RATE}: convert it first"
        )
    channels = frame.layout.nb_channels
    try:
        if frame.format.is_planar and channels >= 8:  # PyAV 18 reads past 8 planes and crashes
            packed = av.AudioResampler(frame.format.packed.name)
            raw = np.concatenate(
                [f.to_ndarray() for f in packed.resample(frame) + packed.resample(None)], axis=1
            )
            block = raw.reshape(-1, channels)
        else:
            raw = frame.to_ndarray()
            block = raw.T if frame.format.is_planar else raw.reshape(-1, channels)
    except READ_ERRORS as error:
        raise AudioError(f"{path}: {reason(error)}; convert it to 16-bit WAV first") from None
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        at = float(seconds + Fraction(row, frame.sample_rate))
        raise AudioError(
            f"{path} has NaN or infinite samples at {at:.3f} s; expected finite numbers: repair it"
        )
    return pcm_to_float(block)


def _lead_in(container: av.container.InputContainer, first: av.AudioFrame) -> Fraction:
    """Seconds from the start of a film to its first sound; 0 for files that are only sound."""
    cover = av.stream.Disposition.attached_pic
    film = any(s.type == "video" and not s.disposition & cover for s in container.streams)
    if not film or first.pts is None:
        return Fraction(0)
    late = first.pts * first.time_base - origin(container)
    return late if Fraction(1, 1000) < late <= MAX_LEAD_IN_S else Fraction(0)


def read_audio(
    path: str | Path, chunk_samples: int = SAMPLE_RATE, on_warning: Warn | None = None
) -> Iterator[np.ndarray]:
    """A file as 16 kHz mono, offset removed, in chunks; memory does not grow with the file.

    Args:
        path: any media file.
        chunk_samples: length of each chunk but the last, samples at 16 kHz.
        on_warning: see `decode_audio`.

    Yields:
        ``(n,)`` float32 in [-1, 1].

    Raises:
        AudioError: see `decode_audio`.
    """
    held = np.zeros(0, np.float32)
    for piece in _at_16k(path, on_warning):
        held = np.concatenate([held, piece])
        whole = len(held) - len(held) % chunk_samples
        for start in range(0, whole, chunk_samples):
            yield held[start : start + chunk_samples]
        held = held[whole:]
    if len(held):
        yield held


def _at_16k(path: str | Path, on_warning: Warn | None) -> Iterator[np.ndarray]:
    rate, stage, state = 0, None, {}
    for block, block_rate in decode_audio(path, on_warning):
        if block_rate != rate:
            if stage is not None:
                yield stage.flush(state)[0]
            rate, stage = block_rate, AudioIn(block_rate)
            state = stage.init_state()
        state, out = stage.step(state, to_mono(block)[None])
        yield out[0]
    yield stage.flush(state)[0]
