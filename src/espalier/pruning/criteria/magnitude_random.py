"""|w| with random choice near the threshold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.errors import InvalidArgument
from espalier.pruning.criterion import CRITERIA, Criterion, Stats


@CRITERIA.register("magnitude-random")
@dataclass(frozen=True)
class MagnitudeRandom(Criterion):
    """score = abs(w) x exp(width x z), z logistic: near the threshold, chance decides.

    With threshold t a weight is pruned with probability 1 / (1 + (abs(w) / t)^(1 / width)): one
    half at the threshold, rising as the weight shrinks, next to nothing at e^(5 width) times it.
    Counts stay exact, since the noisy scores are ranked like any others.

    Parameters
    ----------
    width : float
        Spread in log magnitude, > 0.
    """

    width: float = 0.1

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InvalidArgument(f"width must be positive, not {self.width}")

    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        uniform = torch.rand(weight.shape, generator=stats.generator, dtype=torch.float32)
        noise = torch.logit(uniform, eps=1e-6).to(weight.device)
        return weight.abs().float() * torch.exp(self.width * noise)
