"""Entropy of the filter's pooled outputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier.errors import InvalidArgument
from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("entropy")
@dataclass(frozen=True)
class Entropy(FilterCriterion):
    """score = -sum p_i log p_i over a histogram of the filter's mean outputs, one for each sample.

    Luo and Wu 2017 (arXiv 1706.05791, section 3.2): global average pooling gives a number for each
    sample; its range over the samples is cut into ``bins`` equal bins; a filter that says nearly
    the same of every sample has a low entropy.

    Parameters
    ----------
    bins : int
    """

    needs_outputs: ClassVar[bool] = True

    bins: int = 100

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise InvalidArgument(f"bins must be at least 2, not {self.bins}")

    def score(self, stats: FilterStats) -> Tensor:
        assert stats.pooled is not None
        pooled = stats.pooled.double()
        low, high = pooled.amin(0), pooled.amax(0)
        span = torch.where(high > low, high - low, torch.ones_like(high))
        bins = ((pooled - low) / span * self.bins).long().clamp_(max=self.bins - 1)
        counts = torch.zeros(self.bins, pooled.shape[1], dtype=torch.float64, device=pooled.device)
        counts.scatter_add_(0, bins, torch.ones_like(pooled))
        p = counts / len(pooled)
        return -torch.xlogy(p, p).sum(0)
