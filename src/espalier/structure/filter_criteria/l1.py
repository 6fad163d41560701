"""L1 norm of the filter."""

from dataclasses import dataclass

from torch import Tensor

from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("l1")
@dataclass(frozen=True)
class L1(FilterCriterion):
    """score = sum of abs(w) over the filter (Li et al. 2017, arXiv 1608.08710, section 3.1)."""

    def score(self, stats: FilterStats) -> Tensor:
        return stats.weight.abs().sum(1)
