"""Fit phones to motion on filmed clips, find A/V offsets with it, and label unfilmed speech."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from visavis.models.phone_motion import PhoneMotion
from visavis.train.clips import Clip
from visavis.train.data import SPEECH
from visavis.train.losses import LossWeights, motion_loss
from visavis.train.phones import PHONE_INDEX, articulation
from visavis.types import CHANNEL, MOTION_HOP, N_CHANNELS, SPEECH_CHANNELS

_JAW = CHANNEL["jaw_open"]
_SHUT = np.array([PHONE_INDEX[p] for p in ("P", "B", "M")])
_OPENING = SPEECH_CHANNELS.index("jaw_open")
GAIN_LIMIT = 1.6
_OPENING_STEPS = 3  # lips leave a closure, and go to it, within 60 ms


def loudness(pcm: np.ndarray, steps: int) -> np.ndarray:
    """Energy of each 20 ms against the clip's loud parts, and its change: ``(steps, 2)``."""
    x = np.zeros(steps * MOTION_HOP)
    x[: min(len(pcm), len(x))] = pcm[: len(x)] / 32768.0
    db = 10 * np.log10(np.mean(x.reshape(steps, -1) ** 2, axis=1) + 1e-9)
    level = np.clip((db - np.quantile(db, 0.95)) / 30.0, -1.5, 0.5) + 0.5
    return np.stack([level, np.gradient(level) * 2], axis=1).astype(np.float32)


def phone_steps(clip: Clip, steps: int) -> np.ndarray:
    """Phone class at each motion step, ``(steps,)`` int64."""
    at = np.minimum(np.arange(steps) * 2, len(clip.phones) - 1)
    return clip.phones[at].astype(np.int64)


def fit_phone_motion(
    clips: list[Clip], *, iterations: int = 1500, batch: int = 16, steps: int = 140, seed: int = 0
) -> tuple[PhoneMotion, dict[str, int]]:
    """Train the teacher on clips that have both motion and phones.

    Returns:
        The net in evaluation mode, and the index of each talker's style.
    """
    clips = [c for c in clips if c.motion is not None and c.phones is not None and c.phones.any()]
    talkers = {t: i + 1 for i, t in enumerate(sorted({c.talker for c in clips}))}
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = PhoneMotion(articulation(), len(talkers))
    every = np.concatenate([c.motion[:, SPEECH] for c in clips])
    net.mean[:] = torch.from_numpy(every.mean(0))
    net.scale[:] = torch.from_numpy(every.std(0) + 1e-4)
    rows = []
    for c in clips:
        n = min(c.steps, len(c.motion))
        rows.append(
            (phone_steps(c, n), loudness(c.pcm, n), c.motion[:n, SPEECH], talkers[c.talker])
        )
    # Every talker counts, the one with hundreds of clips not a hundred times more.
    count = {t: sum(r[3] == t for r in rows) for t in talkers.values()}
    odds = np.array([count[r[3]] ** -0.6 for r in rows])
    odds /= odds.sum()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, iterations)
    net.train()
    for _ in range(iterations):
        picked = [rows[i] for i in rng.choice(len(rows), batch, p=odds)]
        columns = [_cut(r, steps, rng) for r in picked]
        phones, loud, motion, known = (
            torch.from_numpy(np.stack(c)) for c in zip(*columns, strict=True)
        )
        who = torch.tensor([0 if rng.random() < 0.5 else r[3] for r in picked])
        answer = net(phones, loud, who)
        ignored = torch.full(known.shape, -100)
        terms = motion_loss(
            answer, torch.zeros(*known.shape, 1), motion, known, ignored, net.scale,
            LossWeights(phones=0.0),
        )  # fmt: skip
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        plan.step()
    net.eval().gain[:] = torch.from_numpy(_spread_gain(net, rows))
    return net, talkers


@torch.no_grad()
def _spread_gain(net: PhoneMotion, rows: list[tuple]) -> np.ndarray:
    """Filmed spread over answered spread by channel, ``(9,)`` in 1 to ``GAIN_LIMIT``.

    The average style answers, as for voices nobody filmed; the median over at most 60 clips.
    """
    nobody, ratios = torch.zeros(1, dtype=torch.int64), []
    for phones, loud, motion, _ in rows[:: max(1, len(rows) // 60)]:
        answer = net(torch.from_numpy(phones)[None], torch.from_numpy(loud)[None], nobody)[0]
        ratios.append(motion.std(0) / (answer.numpy().std(0) + 1e-5))
    return np.clip(np.median(ratios, axis=0), 1.0, GAIN_LIMIT).astype(np.float32)


def _cut(row: tuple, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    phones, loud, motion, _ = row
    start = int(rng.integers(0, max(len(phones) - steps, 0) + 1))
    n = len(phones[start : start + steps])
    out = (
        np.zeros(steps, np.int64), np.zeros((steps, 2), np.float32),
        np.zeros((steps, motion.shape[1]), np.float32), np.zeros(steps, np.float32),
    )  # fmt: skip
    out[0][:n], out[1][:n] = phones[start : start + n], loud[start : start + n]
    out[2][:n], out[3][:n] = motion[start : start + n], 1.0
    return out


@torch.no_grad()
def predict(net: PhoneMotion, clip: Clip, talker: int = 0) -> np.ndarray:
    """Motion of a clip from its phones, ``(T, 21)`` float32, speech channels only."""
    steps = clip.steps
    phones = torch.from_numpy(phone_steps(clip, steps))[None]
    loud = torch.from_numpy(loudness(clip.pcm, steps))[None]
    out = np.zeros((steps, N_CHANNELS), np.float32)
    answer = net(phones, loud, torch.tensor([talker]))[0].numpy()
    rest = net.mean.numpy().copy()
    rest[_OPENING] = 0.0  # an opening grows from shut lips, the other channels from their mean
    out[:, SPEECH] = rest + (answer - rest) * net.gain.numpy()
    out[:, _JAW] = np.maximum(out[:, _JAW], 0.0)
    return meet_lips(out, phones[0].numpy())


def meet_lips(motion: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """Lips that touch for as long as a p, b or m is held, which a fitted mean does not quite do.

    Args:
        motion: ``(T, 21)``.
        phones: ``(T,)`` classes at motion steps.

    Returns:
        ``(T, 21)``; the opening falls to nothing within 60 ms before and rises within 60 ms after.
    """
    held = np.flatnonzero(np.isin(phones, _SHUT))
    if not len(held):
        return motion
    away = np.abs(np.arange(len(motion))[:, None] - held).min(axis=1)
    share = np.minimum(away / (_OPENING_STEPS + 1), 1.0)
    out = motion.copy()
    out[:, _JAW] *= share
    return out.astype(motion.dtype)


def label(net: PhoneMotion, clips: list[Clip], talker: int = 0) -> list[Clip]:
    """Clips with phones get the teacher's motion."""
    return [replace(c, motion=predict(net, c, talker)) for c in clips]


def best_lag(guess: np.ndarray, seen: np.ndarray, reach: int = 10) -> tuple[int, float]:
    """Steps by which ``seen`` ``(T,)`` lags ``guess`` ``(T,)``, and the correlation there."""
    n = min(len(guess), len(seen))
    guess, seen = guess[:n], seen[:n]
    scores = {}
    for lag in range(-reach, reach + 1):
        a = guess[max(0, -lag) : n - max(0, lag)]
        b = seen[max(0, lag) : n - max(0, -lag)]
        scores[lag] = float(np.corrcoef(a, b)[0, 1]) if a.std() * b.std() > 0 else 0.0
    lag = max(scores, key=scores.get)
    return lag, scores[lag]
