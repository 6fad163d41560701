"""CP: four small convolutions, in between them only one channel to one."""

from __future__ import annotations

import math
import string
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

_SWEEPS = 200
_TOLERANCE = 1e-7
_RIDGE = (
    1e-9  # of a weight of norm 1, so that the least squares of a degenerate step have a solution
)


@FACTORIZATIONS.register("cp")
@dataclass(frozen=True)
class Cp(Factorization):
    """W[o, i, y, x] = sum over r of A[o, r] Y[y, r] X[x, r] B[i, r].

    A 1x1 convolution to r channels, one along each dimension of the kernel with as many groups, and
    a 1x1 convolution back: Lebedev et al. 2015 (arXiv 1412.6553, section 3). By alternating least
    squares, begun from singular vectors, with a ridge of 1e-9; theirs is non-linear least squares.
    The rank that an energy, or variational Bayes, calls for is the larger of those of outputs and
    inputs, which a CP rank is never below.
    """

    def refuses(self, layer: nn.Module) -> str:
        if not isinstance(layer, _ConvNd):
            return "cp is for convolutions"
        if math.prod(layer.kernel_size) == 1:
            return "its kernel is 1x1, where cp is svd with layers too many"
        return ""

    def limits(self, shape: Sequence[int]) -> Ranks:
        size = math.prod(shape)
        return (min(size // extent for extent in shape),)

    def parts(self, layer: nn.Module, ranks: Ranks) -> list[nn.Module]:
        outputs, inputs, *kernel = block_shape(layer)
        (rank,) = ranks
        many = rank * layer.groups if isinstance(layer, _ConvNd) else rank
        return [
            part(layer, inputs, rank),
            *(part(layer, rank, rank, along=[d], groups=many) for d in range(len(kernel))),
            part(layer, rank, outputs, bias=layer.bias is not None),
        ]

    def unfoldings(self, block: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        return ((block.flatten(1), block.transpose(0, 1).flatten(1)),)

    def factors(self, block: Tensor, ranks: Ranks) -> list[Tensor]:
        (rank,) = ranks
        wide = block.double()
        norm = torch.linalg.vector_norm(wide)
        with tensorly("cp") as package:
            _, found = package.decomposition.parafac(
                wide / norm,
                rank,
                n_iter_max=_SWEEPS,
                init="svd",
                tol=_TOLERANCE,
                l2_reg=_RIDGE,
                random_state=0,
            )
        # One norm for all factors of a component, so that training moves them alike.
        norms = torch.stack([f.norm(dim=0) for f in found]).clamp_min(1e-30)
        even = (norms.prod(0) * norm) ** (1 / len(found)) / norms
        outer, inner, *along = [(f * e).to(block.dtype) for f, e in zip(found, even, strict=True)]
        dims = len(along)
        return [
            inner.T.reshape(rank, -1, *[1] * dims),
            *(
                f.T.reshape(rank, 1, *[-1 if d == i else 1 for d in range(dims)])
                for i, f in enumerate(along)
            ),
            outer.reshape(-1, rank, *[1] * dims),
        ]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, *along, last = factors
        letters = string.ascii_lowercase[: len(along)]
        terms = ",".join(["R" + d for d in letters])
        flat = [f.flatten(1) for f in along]
        return torch.einsum(f"OR,RI,{terms}->OI{letters}", last.flatten(1), first.flatten(1), *flat)
