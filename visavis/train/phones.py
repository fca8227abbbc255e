"""Phone labels for speech: pocketsphinx for recordings, exact times for flite's own voices.

Phones are the bridge from a few minutes of filmed speech to hundreds of voices without a face:
``phone_motion.py`` learns what a mouth does per phone, and can then label any speech that carries
phone times. Offline only. Labels are one class index per 10 ms.
"""

from __future__ import annotations

import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.types import FEATURE_RATE, SAMPLE_RATE

PHONES = (
    "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH "
    "UH UW V W Y Z ZH"
).split()
"""The 39 phones of the CMU dictionary after silence: 40 classes."""
PHONE_INDEX = {name: i for i, name in enumerate(PHONES)}

_FLITE_TO_CMU = {"pau": "SIL", "ax": "AH", "axr": "ER", "brth": "SIL", "h#": "SIL"}


@dataclass(frozen=True)
class Segment:
    """One phone: class index, first and past-the-last 10 ms frame."""

    phone: int
    start: int
    stop: int


def to_frames(segments: list[Segment], count: int) -> np.ndarray:
    """Class index per 10 ms, ``(count,)`` uint8; silence where nothing is labelled."""
    frames = np.zeros(count, np.uint8)
    for s in segments:
        frames[max(s.start, 0) : s.stop] = s.phone
    return frames


class Aligner:
    """Pocketsphinx with its own US English model (BSD-2), for free and for known text."""

    def __init__(self) -> None:
        import pocketsphinx

        root = Path(pocketsphinx.get_model_path()) / "en-us"
        self._decoder = pocketsphinx.Decoder(
            hmm=str(root / "en-us"),
            lm=str(root / "en-us.lm.bin"),
            dict=str(root / "cmudict-en-us.dict"),
            loglevel="FATAL",
        )

    def transcribe(self, pcm: np.ndarray) -> str:
        """Words heard in ``pcm`` ``(n,)`` int16 at 16 kHz (word error about a third)."""
        self._decoder.activate_search()
        self._run(pcm)
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""

    def align(self, pcm: np.ndarray, text: str) -> list[Segment]:
        """Phone times of ``text`` in ``pcm`` ``(n,)`` int16; empty when it does not fit."""
        words = [w for w in text.lower().split() if self._decoder.lookup_word(w)]
        if not words:
            return []
        try:
            self._decoder.set_align_text(" ".join(words))
            self._run(pcm)
            self._decoder.set_alignment()
            self._run(pcm)
            alignment = self._decoder.get_alignment()
        except RuntimeError:
            return []
        if alignment is None:
            return []
        return [
            Segment(PHONE_INDEX.get(p.name, 0), p.start, p.start + p.duration)
            for word in alignment
            for p in word
        ]

    def _run(self, pcm: np.ndarray) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()


def flite_speech(text: str, voice: str, stretch: float = 1.0) -> tuple[np.ndarray, list[Segment]]:
    """Speak ``text`` with the program flite: ``(n,)`` int16 at 16 kHz and its own phone times."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "speech.wav")
        done = subprocess.run(
            ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur"]
            + ["-t", text, "-o", path],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        with wave.open(path) as reader:
            rate = reader.getframerate()
            pcm = np.frombuffer(reader.readframes(reader.getnframes()), np.int16)
    if rate != SAMPLE_RATE:
        positions = np.arange(int(len(pcm) * SAMPLE_RATE / rate)) * rate / SAMPLE_RATE
        pcm = np.interp(positions, np.arange(len(pcm)), pcm).astype(np.int16)
    segments, start = [], 0
    for item in done.stdout.split():
        name, _, end = item.rpartition(":")
        stop = round(float(end) * FEATURE_RATE)
        name = _FLITE_TO_CMU.get(name, name.upper())
        segments.append(Segment(PHONE_INDEX.get(name, 0), start, stop))
        start = stop
    return pcm, segments
