"""First-order change of the loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(FilterCriterion):
    """score = mean abs(sum of output x d loss / d output) (Molchanov et al. 2017).

    arXiv 1611.06440, section 2.2: what the loss would change, to first order, were the filter's
    outputs zero.
    """

    needs_gradients: ClassVar[bool] = True

    def score(self, stats: FilterStats) -> Tensor:
        assert stats.taylor is not None
        return stats.taylor
