"""L2 norm of the filter."""

from dataclasses import dataclass

from torch import Tensor

from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("l2")
@dataclass(frozen=True)
class L2(FilterCriterion):
    """score = sqrt of the sum of w^2 over the filter."""

    def score(self, stats: FilterStats) -> Tensor:
        return stats.weight.square().sum(1).sqrt()
