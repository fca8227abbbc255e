"""Phone labels for speech: pocketsphinx for recordings, exact times for flite's own voices.

Phones are the bridge from a few minutes of filmed speech to hundreds of voices without a face:
``phone_motion.py`` learns what a mouth does per phone, and can then label any speech that carries
phone times. Offline only. Labels are one class index per 10 ms.
"""

from __future__ import annotations

import subprocess
import tempfile
import wave
from collections.abc import Sequence
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

# Place and manner by phone: lips shut, lip on teeth, tongue on teeth, ridge, palate, back, round,
# nasal, fricative, stop, open vowel, front vowel, glide, voiced, vowel.
_FEATURES = (
    "shut labiodental dental alveolar postalveolar velar round nasal fricative stop "
    "open mid close front back glide voiced vowel silence"
).split()
_ARTICULATION = {
    "SIL": "silence", "AA": "open back vowel voiced", "AE": "open front vowel voiced",
    "AH": "mid vowel voiced", "AO": "open back round vowel voiced",
    "AW": "open back round vowel voiced", "AY": "open front vowel voiced",
    "B": "shut stop voiced", "CH": "postalveolar stop fricative round",
    "D": "alveolar stop voiced", "DH": "dental fricative voiced",
    "EH": "mid front vowel voiced", "ER": "mid round vowel voiced",
    "EY": "mid front close vowel voiced", "F": "labiodental fricative",
    "G": "velar stop voiced", "HH": "fricative glide", "IH": "close front vowel voiced",
    "IY": "close front vowel voiced", "JH": "postalveolar stop fricative round voiced",
    "K": "velar stop", "L": "alveolar glide voiced", "M": "shut nasal voiced",
    "N": "alveolar nasal voiced", "NG": "velar nasal voiced",
    "OW": "mid back round vowel voiced", "OY": "mid back round front vowel voiced",
    "P": "shut stop", "R": "round glide voiced", "S": "alveolar fricative",
    "SH": "postalveolar fricative round", "T": "alveolar stop", "TH": "dental fricative",
    "UH": "close back round vowel voiced", "UW": "close back round vowel voiced",
    "V": "labiodental fricative voiced", "W": "round glide voiced back close",
    "Y": "close front glide voiced", "Z": "alveolar fricative voiced",
    "ZH": "postalveolar fricative round voiced",
}  # fmt: skip


def articulation() -> np.ndarray:
    """``(40, 19)`` float32: which of the articulatory features each phone has."""
    table = np.zeros((len(PHONES), len(_FEATURES)), np.float32)
    for i, phone in enumerate(PHONES):
        for name in _ARTICULATION[phone].split():
            table[i, _FEATURES.index(name)] = 1.0
    return table


VISEMES = {
    "silence": "SIL", "shut": "P B M", "lip on teeth": "F V", "tongue on teeth": "TH DH",
    "ridge": "T D N S Z L", "pushed out": "CH JH SH ZH", "back": "K G NG HH", "r": "R ER",
    "round": "W UW UH OW AO OY", "open": "AA AH AE AY AW", "front": "EH EY IH IY Y",
}  # fmt: skip
"""Phones that look alike, by name: 11 classes."""


def viseme_of_phone() -> np.ndarray:
    """``(40,)`` int64: index in ``VISEMES`` of each phone."""
    table = np.zeros(len(PHONES), np.int64)
    for i, names in enumerate(VISEMES.values()):
        table[[PHONE_INDEX[n] for n in names.split()]] = i
    return table


_FLITE_TO_CMU = {"pau": "SIL", "ax": "AH", "axr": "ER", "brth": "SIL", "h#": "SIL"}


@dataclass(frozen=True)
class Segment:
    """One phone: class index, first and past-the-last 10 ms frame."""

    phone: int
    start: int
    stop: int


@dataclass(frozen=True)
class Alignment:
    """What is said and when: ``words`` as word, start and end in seconds; phones; the text."""

    text: str = ""
    words: tuple[tuple[str, float, float], ...] = ()
    phones: tuple[Segment, ...] = ()


def to_frames(segments: Sequence[Segment], count: int) -> np.ndarray:
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
        common = {
            "hmm": str(root / "en-us"),
            "dict": str(root / "cmudict-en-us.dict"),
            "loglevel": "FATAL",
        }
        self._hear = pocketsphinx.Decoder(lm=str(root / "en-us.lm.bin"), **common)
        # Known text leaves little to search, so wide beams cost little.
        wide = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}
        self._fit = pocketsphinx.Decoder(lm=None, **wide, **common)

    def transcribe(self, pcm: np.ndarray) -> str:
        """Words heard in ``pcm`` ``(n,)`` int16 at 16 kHz (word error about a third)."""
        _run(self._hear, pcm)
        return self._heard()

    def hear(self, pcm: np.ndarray) -> Alignment:
        """Words heard in ``pcm`` ``(n,)`` int16 with the times of that very hypothesis.

        Where nothing is known of the text, this fits where ``align`` to the words alone does not:
        fillers, breaths and chosen pronunciations are kept. Empty when nothing was made out.
        """
        _run(self._hear, pcm)
        text = self._heard()
        if not text:
            return Alignment()
        try:
            self._hear.set_alignment()
            _run(self._hear, pcm)
            found = _alignment(self._hear.get_alignment(), text)
        except RuntimeError:
            found = Alignment(text)
        # Back to the language model: the next recognition would crash in the alignment's search.
        self._hear.activate_search()
        return found

    def _heard(self) -> str:
        hypothesis = self._hear.hyp()
        words = hypothesis.hypstr.split() if hypothesis else []
        return " ".join(w.split("(")[0] for w in words if w[0] not in "<[+")

    def align(self, pcm: np.ndarray, text: str) -> Alignment:
        """Times of ``text`` in ``pcm`` ``(n,)`` int16; no phones when it does not fit."""
        words = [w for w in text.lower().split() if self._fit.lookup_word(w)]
        if not words:
            return Alignment(text)
        try:
            self._fit.set_align_text(" ".join(words))
            _run(self._fit, pcm)
            self._fit.set_alignment()
            _run(self._fit, pcm)
            return _alignment(self._fit.get_alignment(), text)
        except RuntimeError:
            return Alignment(text)


def _alignment(found, text: str) -> Alignment:
    """Of a pocketsphinx alignment, which may be None."""
    words, phones = [], []
    for word in found or ():
        name = word.name.split("(")[0]
        if name[0] not in "<[+":
            stop = word.start + word.duration
            words.append((name, word.start / FEATURE_RATE, stop / FEATURE_RATE))
        phones += [Segment(PHONE_INDEX.get(p.name, 0), p.start, p.start + p.duration) for p in word]
    return Alignment(text, tuple(words), tuple(phones))


def _run(decoder, pcm: np.ndarray) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()


def flite_speech(text: str, voice: str, stretch: float = 1.0) -> tuple[np.ndarray, list[Segment]]:
    """Speak ``text`` with the program flite: ``(n,)`` int16 at 16 kHz and its own phone times."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "speech.wav")
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur"]
        done = subprocess.run(
            [*command, "-t", text, "-o", path], capture_output=True, text=True, check=True
        )
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
