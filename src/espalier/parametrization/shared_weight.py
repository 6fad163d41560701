"""Shared weights: codes, and a codebook that learns."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from espalier.parametrization.masks import PRUNED, channels_last


def codes_dtype(k: int) -> torch.dtype:
    """The narrowest dtype that holds the codes 0 (pruned) to ``k``, and that gloo broadcasts."""
    return torch.uint8 if k <= 255 else torch.int32


class SharedWeight(nn.Module):
    """weight = codebook[codes - 1] where codes > 0, +0 elsewhere (Han et al. 2016, section 3).

    Parameters
    ----------
    codes : integer Tensor of the weight's shape
        0 where the weight is pruned, i + 1 where it shares centroid i.
    """

    espalier: ClassVar[bool] = True

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    codes: Tensor

    def forward(self, codebook: Tensor) -> Tensor:
        table = torch.cat([codebook.new_zeros(1), codebook])
        codes = self.codes.movedim(1, -1) if channels_last(self.codes) else self.codes
        weight = table.index_select(0, codes.flatten().int()).view(codes.shape)
        return weight.movedim(-1, 1) if codes is not self.codes else weight

    def centroids(self, original: Tensor) -> Tensor:
        """The codebook, given the parameter that stands before this parametrization."""
        return original


class LatentSharedWeight(SharedWeight):
    """A shared weight over a dense latent one, so that its codes can be assigned again.

    weight = codebook[codes - 1]; the codebook gets the sum of the gradients, and the latent weight
    gets each of them straight through. :meth:`refresh` assigns every kept weight to the centroid
    that is nearest to its latent value.
    """

    def __init__(self, codes: Tensor, codebook: Tensor) -> None:
        super().__init__(codes)
        self.codebook = nn.Parameter(codebook)

    def forward(self, latent: Tensor) -> Tensor:
        shared = super().forward(self.codebook)
        through = torch.where(self.codes > PRUNED, latent - latent.detach(), latent.new_zeros(()))
        return shared + through

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def centroids(self, original: Tensor) -> Tensor:
        return self.codebook

    @torch.no_grad()
    def refresh(self, latent: Tensor) -> int:
        """Assign the kept weights to their nearest centroids; return how many changed."""
        order = torch.argsort(self.codebook)
        rising = self.codebook[order]
        nearest = order[torch.bucketize(latent, (rising[1:] + rising[:-1]) / 2)] + 1
        codes = torch.where(self.codes > PRUNED, nearest.to(self.codes.dtype), self.codes)
        changed = int((codes != self.codes).sum())
        self.codes.copy_(codes)
        return changed
