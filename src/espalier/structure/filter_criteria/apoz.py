"""Average percentage of zeros."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("apoz")
@dataclass(frozen=True)
class ApoZ(FilterCriterion):
    """score = 1 - share of zeros in the filter's outputs (Hu et al. 2016, arXiv 1607.03250)."""

    needs_outputs: ClassVar[bool] = True

    def score(self, stats: FilterStats) -> Tensor:
        assert stats.zeros is not None
        return 1 - stats.zeros
