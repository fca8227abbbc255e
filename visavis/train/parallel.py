"""Several processes on one training: each takes its rows of every batch, gradients are averaged.

Started by torchrun, which tells every process its place through the environment. Every process draws
the whole batch, which depends on its number alone, so what a loss is divided by is known everywhere
without a word between processes, and the curve is that of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among all: ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """The rows of a batch that are this process's."""
        return slice(self.rank, batch, self.world)

    def wrap(self, net: nn.Module) -> nn.Module:
        """The net whose backward pass averages gradients over processes."""
        if self.world == 1:
            return net
        return DistributedDataParallel(net, broadcast_buffers=False)

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over processes."""
        if self.world == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def wait(self) -> None:
        """Until every process has come here."""
        if self.world > 1:
            torch.distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined(distributed: bool) -> Iterator[Ranks]:
    """Meet the other processes over gloo, or stay alone.

    Args:
        distributed: whether torchrun started this process.
    """
    if not distributed:
        yield ALONE
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
