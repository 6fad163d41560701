"""Scale of the batch norm behind the filter."""

from dataclasses import dataclass

from torch import Tensor

from espalier.errors import InvalidArgument
from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats


@FILTER_CRITERIA.register("batch-norm")
@dataclass(frozen=True)
class BatchNormScale(FilterCriterion):
    """score = abs(gamma) of the batch norm behind (Liu et al. 2017, arXiv 1708.06519)."""

    def score(self, stats: FilterStats) -> Tensor:
        scale = getattr(stats.norm, "weight", None)
        if scale is None:
            raise InvalidArgument("no batch norm with a scale follows it")
        return scale.detach().abs()
