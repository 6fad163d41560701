"""|w|: the criterion of Deep Compression."""

from dataclasses import dataclass

from torch import Tensor

from espalier.pruning.criterion import CRITERIA, Criterion, Stats


@CRITERIA.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """score = abs(w) (Han et al. 2016, arXiv 1510.00149, section 2)."""

    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        return weight.abs()
