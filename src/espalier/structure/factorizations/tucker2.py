"""Tucker-2: a 1x1 convolution to fewer channels, a small core, a 1x1 convolution back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from espalier.structure.decomposition import tensorly
from espalier.structure.factorization import (
    FACTORIZATIONS,
    Factorization,
    Ranks,
    block_shape,
    part,
)
from espalier.structure.spectrum import leading

_SWEEPS = 10
_TOLERANCE = 1e-4  # of the relative error, between two sweeps


@FACTORIZATIONS.register("tucker2")
@dataclass(frozen=True)
class Tucker2(Factorization):
    """W[o, i, ...] = sum over p, q of A[o, p] C[p, q, ...] B[i, q], ranks (p, q).

    Kim et al. 2016 (arXiv 1511.06530, section 3.1). Higher-order orthogonal iteration, begun from
    the leading eigenvectors of the two unfoldings.
    """

    def refuses(self, layer: nn.Module) -> str:
        if not isinstance(layer, _ConvNd):
            return "tucker2 is for convolutions"
        if math.prod(layer.kernel_size) == 1:
            return "its kernel is 1x1, where tucker2 is svd with a layer too many"
        return ""

    def limits(self, shape: Sequence[int]) -> Ranks:
        outputs, inputs, *kernel = shape
        size = math.prod(kernel)
        return min(outputs, inputs * size), min(inputs, outputs * size)

    def clip(self, shape: Sequence[int], ranks: Ranks) -> Ranks:
        # The core's own unfoldings have no higher rank than their shorter side.
        outputs, inputs = super().clip(shape, ranks)
        size = math.prod(shape[2:])
        return min(outputs, inputs * size), min(inputs, outputs * size)

    def parts(self, layer: nn.Module, ranks: Ranks) -> list[nn.Module]:
        outputs, inputs, *kernel = block_shape(layer)
        narrow_out, narrow_in = ranks
        return [
            part(layer, inputs, narrow_in),
            part(layer, narrow_in, narrow_out, along=range(len(kernel))),
            part(layer, narrow_out, outputs, bias=layer.bias is not None),
        ]

    def unfoldings(self, block: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        return (block.flatten(1),), (block.transpose(0, 1).flatten(1),)

    def factors(self, block: Tensor, ranks: Ranks) -> list[Tensor]:
        begin = [
            leading(matrix, rank)
            for (matrix,), rank in zip(self.unfoldings(block), ranks, strict=True)
        ]
        with tensorly("tucker2") as package:
            (core, (left, right)), _ = package.decomposition.partial_tucker(
                block,
                rank=list(ranks),
                modes=[0, 1],
                init=begin,
                n_iter_max=_SWEEPS,
                tol=_TOLERANCE,
                random_state=0,
            )
        ones = [1] * (block.dim() - 2)
        return [right.T.reshape(ranks[1], -1, *ones), core, left.reshape(-1, ranks[0], *ones)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, core, last = factors
        wide = torch.tensordot(last.flatten(1), core, 1)
        return torch.tensordot(wide, first.flatten(1), ([1], [0])).movedim(-1, 1)
