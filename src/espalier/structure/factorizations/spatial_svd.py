"""Spatial SVD: a column kernel, then a row kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.structure.factorization import (
    FACTORIZATIONS,
    Factorization,
    Ranks,
    block_shape,
    part,
)
from espalier.structure.spectrum import best_of_rank


@FACTORIZATIONS.register("spatial_svd")
@dataclass(frozen=True)
class SpatialSvd(Factorization):
    """W[o, i, y, x] = sum over r of H[o, r, x] V[r, i, y]: k x 1, then 1 x k convolutions.

    The best of its rank, by an SVD of W as a matrix of (i, y) against (o, x): scheme 2 of Jaderberg
    et al. 2014 (arXiv 1405.3866, section 2.2), in the closed form of Tai et al. 2016 (arXiv
    1511.06067, section 3.1).
    """

    def refuses(self, layer: nn.Module) -> str:
        if not isinstance(layer, nn.Conv2d):
            return "spatial_svd is for two-dimensional convolutions"
        if 1 in layer.kernel_size:
            return f"its kernel is {layer.kernel_size[0]} x {layer.kernel_size[1]} already"
        return ""

    def limits(self, shape: Sequence[int]) -> Ranks:
        outputs, inputs, height, width = shape
        return (min(inputs * height, outputs * width),)

    def parts(self, layer: nn.Module, ranks: Ranks) -> list[nn.Module]:
        outputs, inputs, *_ = block_shape(layer)
        (rank,) = ranks
        return [
            part(layer, inputs, rank, along=[0]),
            part(layer, rank, outputs, along=[1], bias=layer.bias is not None),
        ]

    def unfoldings(self, block: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        return ((_matrix(block),),)

    def factors(self, block: Tensor, ranks: Ranks) -> list[Tensor]:
        outputs, inputs, height, width = block.shape
        left, right = best_of_rank(_matrix(block), ranks[0])
        vertical = left.T.reshape(-1, inputs, height, 1)
        horizontal = right.reshape(-1, outputs, 1, width).transpose(0, 1)
        return [vertical, horizontal]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        vertical, horizontal = factors
        return torch.einsum("riy,orx->oiyx", vertical[..., 0], horizontal[:, :, 0])


def _matrix(block: Tensor) -> Tensor:
    """(inputs x height, outputs x width)."""
    outputs, inputs, height, width = block.shape
    return block.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
