"""Truncated SVD: two linear layers, or a narrower convolution and a 1x1 convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from espalier.structure.factorization import (
    FACTORIZATIONS,
    Factorization,
    Ranks,
    block_shape,
    part,
)
from espalier.structure.spectrum import best_of_rank


@FACTORIZATIONS.register("svd")
@dataclass(frozen=True)
class Svd(Factorization):
    """W = L R with r columns and rows: min ||W - L R||_F over all of rank r.

    A linear layer becomes ``Linear(in, r)`` without and ``Linear(r, out)`` with bias (Denton et al.
    2014, arXiv 1404.0736, section 3.2.1). A convolution keeps its kernel and geometry in one of r
    outputs, which a 1x1 convolution spreads over the outputs (Zhang et al. 2016, arXiv 1505.06798,
    section 3.1, without its response data).
    """

    def refuses(self, layer: nn.Module) -> str:
        return ""

    def limits(self, shape: Sequence[int]) -> Ranks:
        return (min(shape[0], math.prod(shape[1:])),)

    def parts(self, layer: nn.Module, ranks: Ranks) -> list[nn.Module]:
        outputs, inputs, *kernel = block_shape(layer)
        (rank,) = ranks
        return [
            part(layer, inputs, rank, along=range(len(kernel))),
            part(layer, rank, outputs, bias=layer.bias is not None),
        ]

    def unfoldings(self, block: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        return ((block.flatten(1),),)

    def factors(self, block: Tensor, ranks: Ranks) -> list[Tensor]:
        left, right = best_of_rank(block.flatten(1), ranks[0])
        ones = [1] * (block.dim() - 2)
        return [right.reshape(-1, *block.shape[1:]), left.reshape(*left.shape, *ones)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        right, left = factors
        return (left.flatten(1) @ right.flatten(1)).view(-1, *right.shape[1:])
