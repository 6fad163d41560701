"""Inputs and labels, in memory or from the user's own loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from espalier.errors import InvalidArgument


@dataclass(frozen=True)
class Samples:
    """Inputs and labels, in memory. ``x``: float (N, ...), ``y``: int64 (N,)."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise InvalidArgument(f"{len(self.x)} inputs for {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, index: Tensor) -> Samples:
        """The samples at ``index``."""
        return Samples(self.x[index], self.y[index])

    def split(self, holdout: int, seed: int) -> tuple[Samples, Samples]:
        """``(rest, held out)``: ``holdout`` samples are drawn at random, without replacement."""
        if not 0 < holdout < len(self):
            raise InvalidArgument(f"holdout {holdout} must lie between 1 and {len(self) - 1}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[holdout:]), self.subset(order[:holdout])


Data: TypeAlias = Samples | DataLoader[tuple[Tensor, Tensor]]
"""What training and evaluation take: samples in memory, or a loader of batches (inputs, labels)."""


def batches(data: Data, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of ``data`` in its own order; ``size`` is for samples in memory."""
    if isinstance(data, Samples):
        yield from zip(data.x.split(size), data.y.split(size), strict=True)
    else:
        yield from data
