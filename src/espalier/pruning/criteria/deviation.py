"""|w| in standard deviations of its layer."""

from dataclasses import dataclass

from torch import Tensor

from espalier.pruning.criterion import CRITERIA, Criterion, Stats


@CRITERIA.register("deviation")
@dataclass(frozen=True)
class Deviation(Criterion):
    """score = abs(w) / std(w), so that a threshold on it is quality x standard deviation.

    Han et al. 2015 (arXiv 1506.02626, section 3.1): "the pruning threshold is chosen as a quality
    parameter multiplied by the standard deviation of a layer's weights". The standard deviation is
    that of the weights still kept, so that a second round prunes further. With a density and
    global scope it compares layers of different scale fairly.
    """

    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        kept = weight if stats.kept is None else weight[stats.kept]
        scale = kept.std(correction=0) if kept.numel() else weight.new_zeros(())
        return weight.abs() / scale.clamp_min(1e-30 if weight.dtype.itemsize > 2 else 1e-7)
