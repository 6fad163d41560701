"""Magnitude that can be compared between layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.pruning.criterion import CRITERIA, Criterion, Stats


@CRITERIA.register("lamp")
@dataclass(frozen=True)
class Lamp(Criterion):
    """score(u) = w_u^2 / (sum of w_v^2 over all v of the layer with abs(w_v) >= abs(w_u)).

    Layer-adaptive magnitude-based pruning (Lee et al. 2021, arXiv 2010.07611, eq. 3): within a
    layer the order is that of magnitudes; over the network, with ``scope="global"``, each layer
    gets the share that distorts its output the least for all of them, up to a factor. The largest
    weight of each layer scores 1, so that no layer is left empty. Equal magnitudes are summed in
    the order of their places.
    """

    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        squares = weight.flatten().to(torch.float64).square()
        falling, order = squares.sort(descending=True, stable=True)
        scores = torch.empty_like(squares)
        # A layer of zeros has nothing to divide by, and nothing to keep.
        scores[order] = falling / falling.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        return scores.view(weight.shape)
