"""Tucker-2: a 1x1 convolution to fewer channels, a small core, a 1x1 convolution back.

Where a rank is the number of channels, that 1x1 convolution would only turn them, and is left out:
the core takes it in.
"""

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
        biased = layer.bias is not None
        whole = narrow_out == outputs
        core = part(layer, narrow_in, narrow_out, along=range(len(kernel)), bias=biased and whole)
        found = [core] if narrow_in == inputs else [part(layer, inputs, narrow_in), core]
        return found if whole else [*found, part(layer, narrow_out, outputs, bias=biased)]

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
        first, last = right.T.reshape(ranks[1], -1, *ones), left.reshape(-1, ranks[0], *ones)
        found = [first, core, last]
        if ranks[1] == block.shape[1]:
            found[:2] = [_widened(first, core)]
        if ranks[0] == block.shape[0]:
            found[-2:] = [torch.tensordot(last.flatten(1), found[-2], 1)]
        return found

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        at = next(i for i, factor in enumerate(factors) if math.prod(factor.shape[2:]) > 1)
        found = factors[at]
        for last in factors[at + 1 :]:
            found = torch.tensordot(last.flatten(1), found, 1)
        for first in factors[:at]:
            found = _widened(first, found)
        return found


def _widened(first: Tensor, core: Tensor) -> Tensor:
    """The kernel of ``first``, a 1x1 convolution, and ``core`` behind it, as one."""
    return torch.tensordot(core, first.flatten(1), ([1], [0])).movedim(-1, 1)
