"""Phones to motion: the teacher that gives a mouth to speech nobody filmed.

It sees whole utterances (past and future) of phones by articulation and how loud they are, never
the voice itself, so what it learns from one talker holds for another.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class PhoneMotion(nn.Module):
    """Phones ``(B, T)`` and loudness ``(B, T, 2)`` to speech motion ``(B, T, 9)`` at 50 Hz.

    Args:
        table: ``(P, K)`` float32, the articulatory features of each of the phones.
        n_talkers: styles to learn besides the average one.
        n_outputs: channels.
        hidden: width.
    """

    def __init__(self, table: np.ndarray, n_talkers: int, n_outputs: int = 9, hidden: int = 96):
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table))
        n_in = table.shape[1] + 4
        self.own = nn.Embedding(len(table), 4)  # what the table does not say
        self.talker = nn.Embedding(n_talkers + 1, 8, padding_idx=0)  # 0: nobody in particular
        self.entry = nn.Linear(n_in + 2, hidden)
        self.conv = nn.Conv1d(hidden, hidden, 7, padding=3)
        self.drop = nn.Dropout(0.3)
        self.gru = nn.GRU(hidden + 8, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, n_outputs)
        self.register_buffer("mean", torch.zeros(n_outputs))
        self.register_buffer("scale", torch.ones(n_outputs))
        self.register_buffer("gain", torch.ones(n_outputs))  # what a fitted mean moves too little

    def forward(self, phones: Tensor, loudness: Tensor, talker: Tensor) -> Tensor:
        """``talker`` ``(B,)`` int64, 0 for the average of all."""
        x = torch.cat([self.table[phones], self.own(phones), loudness], dim=-1)
        x = torch.relu(self.entry(x))
        x = x + torch.relu(self.conv(x.transpose(1, 2)).transpose(1, 2))
        who = self.talker(talker)[:, None].expand(-1, x.shape[1], -1)
        y, _ = self.gru(torch.cat([self.drop(x), who], dim=-1))
        return self.head(self.drop(y)) * self.scale + self.mean
