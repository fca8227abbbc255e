"""Speak sentences with eSpeak NG and note when each phone starts. A program of its own.

eSpeak NG is under the GPL: visavis never loads it. Whoever prepares training data may run this file
in a process of its own; it opens the library that the system's package ``espeak-ng`` installs.
The program ``espeak-ng`` itself prints phone times for MBROLA voices only, hence the library.

Reads one JSON object a line: ``{"text", "voice", "rate", "pitch", "out"}`` (``rate`` in words a
minute, ``pitch`` 0 to 99). Writes ``OUT.wav`` and ``OUT.json``: ``{"rate": Hz, "samples": n,
"phones": [[IPA, first sample], ...]}``, an empty IPA being a pause. Prints one line per sentence:
``ok OUT`` or ``failed OUT: why``.
"""

from __future__ import annotations

import ctypes
import json
import sys
import wave
from pathlib import Path

SYNCHRONOUS, PHONE_EVENTS, PHONE_IPA = 2, 1, 2
EVENT_PHONE, UTF8, RATE, PITCH = 7, 1, 1, 3


class Identity(ctypes.Union):
    """Payload of an event."""

    _fields_ = (
        ("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8),
    )  # fmt: skip


class Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text", ctypes.c_int),
        ("length", ctypes.c_int), ("ms", ctypes.c_int), ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p), ("identity", Identity),
    )  # fmt: skip


class Speaker:
    """The library, opened once; it keeps one voice at a time."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONE_EVENTS | PHONE_IPA)
        self.pcm, self.phones = bytearray(), []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
        )
        self._callback = kind(self._take)
        self.library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.pcm.extend(ctypes.string_at(samples, 2 * count))
        i = 0
        while events[i].type:
            if events[i].type == EVENT_PHONE:
                # Long names fill all eight bytes and lose their end.
                name = bytes(events[i].identity.string).split(b"\0")[0]
                self.phones.append([name.decode("utf-8", "ignore"), events[i].sample])
            i += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> tuple[bytes, list]:
        """Samples, 16 bit mono, and phones with their first sample."""
        self.pcm, self.phones = bytearray(), []
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"no voice {voice}")
        self.library.espeak_SetParameter(RATE, rate, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        data = text.encode()
        if self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None):
            raise ValueError("not spoken")
        self.library.espeak_Synchronize()
        return bytes(self.pcm), self.phones


def main() -> None:
    """Every line of standard input."""
    speaker = Speaker()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            pcm, phones = speaker.speak(job["text"], job["voice"], job["rate"], job["pitch"])
        except ValueError as error:
            print(f"failed {job['out']}: {error}", flush=True)
            continue
        with wave.open(job["out"] + ".wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(speaker.rate)
            file.writeframes(pcm)
        facts = {"rate": speaker.rate, "samples": len(pcm) // 2, "phones": phones}
        Path(job["out"] + ".json").write_text(json.dumps(facts), encoding="utf-8")
        print(f"ok {job['out']}", flush=True)


if __name__ == "__main__":
    main()
