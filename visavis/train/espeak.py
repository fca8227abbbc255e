"""Synthetic speech of many voices and languages with exact phone times, from eSpeak NG.

eSpeak NG is under the GPL and is never loaded here: ``tools/espeak_phones.py`` runs in a process of
its own and leaves sound and times in files. Its phones are read as IPA and mapped to the 40 classes
of ``phones.PHONES``, the nearest by what lips and jaw do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from visavis.audio import read_audio
from visavis.errors import ConfigError, InputError
from visavis.train.clips import Clip, save_clip
from visavis.train.phones import PHONE_INDEX, Segment, to_frames
from visavis.types import FEATURE_HOP, FEATURE_RATE, SAMPLE_RATE

TOOL = Path(__file__).parents[2] / "tools" / "espeak_phones.py"
SENTENCES = Path(__file__).with_name("sentences.txt")
VOICES = {
    "en": ("en-us", "en", "en-gb-scotland", "en-029"), "de": ("de",), "es": ("es", "es-419"),
    "fr": ("fr", "fr-be"), "it": ("it",), "pt": ("pt-br", "pt"), "nl": ("nl",), "pl": ("pl",),
    "tr": ("tr",),
}  # fmt: skip
"""Language -> eSpeak NG voices that speak it."""
VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 Andy Annie Alicia Denis "
    "Gene Henrique Lee Michael Mario belinda linda john victor zac steph max paul"
).split()
"""Vocal tracts laid over a voice: a talker is a voice and one of these."""
PAD_S = 0.3  # of silence before and after: eSpeak starts and ends on the first and last phone

_PLAIN = {
    "p": "P", "b": "B", "ɓ": "B", "m": "M", "f": "F", "ɸ": "F", "v": "V", "ʋ": "V", "β": "V",
    "ɱ": "M", "θ": "TH", "ð": "DH", "t": "T", "d": "D", "ʈ": "T", "ɖ": "D", "ɗ": "D", "n": "N",
    "ɳ": "N", "ɲ": "N", "s": "S", "z": "Z", "l": "L", "ɫ": "L", "ɭ": "L", "ʎ": "L", "ɬ": "L",
    "r": "L", "ɾ": "L", "ɽ": "L", "ɹ": "R", "ɻ": "R", "ʃ": "SH", "ʂ": "SH", "ɕ": "SH", "ʒ": "ZH",
    "ʐ": "ZH", "ʑ": "ZH", "ç": "HH", "ʝ": "Y", "j": "Y", "c": "K", "ɟ": "G", "k": "K", "q": "K",
    "ɡ": "G", "g": "G", "ŋ": "NG", "x": "HH", "χ": "HH", "ɣ": "G", "ʁ": "G", "ʀ": "G", "ɰ": "G",
    "h": "HH", "ɦ": "HH", "ħ": "HH", "ʕ": "HH", "ʔ": "HH", "w": "W", "ʍ": "W", "ɥ": "W",
    "i": "IY", "ɪ": "IH", "ᵻ": "IH", "ɨ": "IH", "ɯ": "IH", "y": "UW", "ʏ": "UW", "ʉ": "UW",
    "u": "UW", "ʊ": "UH", "e": "EY", "ɛ": "EH", "ø": "UH", "œ": "UH", "ɵ": "UH", "ə": "AH",
    "ɘ": "AH", "ɐ": "AH", "ʌ": "AH", "ɤ": "AH", "ɜ": "ER", "ɝ": "ER", "ɚ": "ER", "o": "OW",
    "ɔ": "AO", "ɒ": "AO", "æ": "AE", "a": "AA", "ɑ": "AA",
}  # fmt: skip
_JOINED = {
    "eɪ": "EY", "ɛɪ": "EY", "aɪ": "AY", "ɑɪ": "AY", "aʊ": "AW", "ɔɪ": "OY", "ɔø": "OY",
    "ɔy": "OY", "oʊ": "OW", "əʊ": "OW", "oː": "OW", "tʃ": "CH", "tɕ": "CH", "tʂ": "CH",
    "dʒ": "JH", "dʑ": "JH", "dʐ": "JH", "ɪɹ": "IH R", "ɛɹ": "EH R", "ɑɹ": "AA R", "ɔɹ": "AO R",
    "oɹ": "AO R", "ʊɹ": "UH R",
}  # fmt: skip


def cmu_of(ipa: str) -> list[str]:
    """The phones of the 40 classes one IPA phone passes through, in order; empty for a pause.

    Raises:
        InputError: a symbol that is no sound this table knows.
    """
    bare = [
        c for c in unicodedata.normalize("NFD", ipa)
        if c not in "ˈˌːˑ‍ʰʲʷˠˤ˞͡ʼ.:;|_-?" and not unicodedata.combining(c) and not c.isdigit()
    ]  # fmt: skip
    # NFD splits the cedilla off: c with it is a fricative.
    text = "".join(bare) if "̧" not in unicodedata.normalize("NFD", ipa) else "ç"
    found: list[str] = []
    while text:
        if text[:2] in _JOINED:
            found, text = found + _JOINED[text[:2]].split(), text[2:]
        elif text[0] in _PLAIN:
            found, text = found + [_PLAIN[text[0]]], text[1:]
        else:
            raise InputError(f"phone {ipa!r} has the unknown symbol {text[0]!r}; add it to the map")
    return found


def to_segments(phones: list[tuple[str, float]], end_s: float) -> list[Segment]:
    """IPA phones with their starts in seconds to segments; one of several sounds is shared out."""
    segments, names = [], ["SIL"]
    stops = [start for _, start in phones[1:]] + [end_s]
    for (ipa, start), stop in zip(phones, stops, strict=True):
        names = cmu_of(ipa) or (names[-1:] if ipa else ["SIL"])  # a mark alone colours what was
        edges = np.round(np.linspace(start, stop, len(names) + 1) * FEATURE_RATE).astype(int)
        segments += [
            Segment(PHONE_INDEX[name], int(a), int(b))
            for name, a, b in zip(names, edges[:-1], edges[1:], strict=True)
        ]
    return segments


def read_sentences(path: str | Path = SENTENCES) -> dict[str, list[str]]:
    """Sentences by language from lines of language, tab, sentence."""
    found: dict[str, list[str]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            language, text = line.split("\t")
            found.setdefault(language, []).append(text)
    return found


def plan(
    sentences: dict[str, list[str]], variants: tuple[str, ...], each: int = 4, seed: int = 0
) -> list[dict]:
    """Every sentence by some of the variants; variants, voice, pace and pitch are drawn.

    Args:
        sentences: by language.
        variants: to draw from.
        each: how many speak one sentence.
        seed: of the draw.

    Returns:
        Jobs of ``tools/espeak_phones.py`` with ``language``, ``talker`` and ``name`` besides.
    """
    rng = np.random.default_rng(seed)
    jobs = []
    for language, texts in sentences.items():
        for i, text in enumerate(texts):
            for variant in rng.choice(variants, min(each, len(variants)), replace=False):
                voice = f"{VOICES[language][rng.integers(len(VOICES[language]))]}+{variant}"
                jobs.append({
                    "text": text, "voice": voice, "language": language, "talker": voice,
                    "rate": int(rng.integers(120, 200)), "pitch": int(rng.integers(25, 75)),
                    "name": f"{language}-{variant}-{i:02d}",
                })  # fmt: skip
    return jobs


def prepare_espeak(
    jobs: list[dict],
    out: str | Path,
    name: str = "espeak",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Speak every job in one helper process; clips already there are kept.

    Args:
        jobs: of ``plan``.
        out: folder of all clips.
        name: of the corpus written.
        progress: called with sentences done and sentences in all.

    Returns:
        Report: corpus, clips made now, reason for every one refused.

    Raises:
        ConfigError: the helper cannot be run here.
    """
    todo = [j for j in jobs if not (Path(out) / name / f"{j['name']}.safetensors").exists()]
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        said = _speak([j | {"out": str(Path(folder) / j["name"])} for j in todo])
        for done, job in enumerate(todo):
            stem = Path(folder) / job["name"]
            if stem.with_suffix(".json").exists():
                save_clip(_clip(job, stem, name), out)
            else:
                refused[job["name"]] = said.get(job["name"], "the helper said nothing")
            if progress:
                progress(done + 1, len(todo))
    return {"corpus": name, "clips": len(todo) - len(refused), "refused": refused}


def _speak(jobs: list[dict]) -> dict[str, str]:
    """Run the helper; what it said of each job by name."""
    if not TOOL.exists():
        raise ConfigError(f"{TOOL} is missing; it comes with the source checkout, not the package")
    lines = "\n".join(json.dumps(j) for j in jobs)
    done = subprocess.run(
        [sys.executable, str(TOOL)], input=lines, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"eSpeak NG cannot be run ({reason}); install the package espeak-ng")
    failed = [x[len("failed ") :] for x in done.stdout.splitlines() if x.startswith("failed ")]
    return {Path(out).name: why for out, _, why in (x.partition(": ") for x in failed)}


def _clip(job: dict, stem: Path, corpus: str) -> Clip:
    """Sound and times of the helper to a clip, with silence before and after."""
    facts = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    sound = np.concatenate([*read_audio(stem.with_suffix(".wav")), np.zeros(0, np.float32)])
    pad = np.zeros(round(PAD_S * SAMPLE_RATE), np.float32)
    sound = np.concatenate([pad, sound, pad])
    phones = [(ipa, PAD_S + sample / facts["rate"]) for ipa, sample in facts["phones"]]
    segments = to_segments(phones, PAD_S + facts["samples"] / facts["rate"])
    pcm = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    meta = {
        "text": job["text"], "language": job["language"], "licence": "made here with eSpeak NG",
    }  # fmt: skip
    frames = to_frames(segments, len(pcm) // FEATURE_HOP)
    return Clip(job["name"], corpus, job["talker"], pcm, None, frames, meta)
