"""What a factorization is: one layer written as a chain of smaller ordinary layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from espalier.registry import Registry

Ranks: TypeAlias = tuple[int, ...]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What can be factored. Subclasses may compute something else, and are left alone."""


class Factorization(ABC):
    """One way to write a layer's weight as a product of smaller ones.

    A frozen dataclass in a file of its own under ``structure/factorizations``, registered by name.
    Each group of a grouped convolution is a weight of its own, a *block* of shape
    ``(outputs, inputs, *kernel)``, and all have the same ranks.
    """

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, layer: nn.Module) -> str:
        """Why ``layer``, one of :data:`LAYERS`, has no such factors; empty if it has."""

    @abstractmethod
    def limits(self, shape: Sequence[int]) -> Ranks:
        """The largest ranks of a block of that shape: with them the product is exact."""

    def clip(self, shape: Sequence[int], ranks: Ranks) -> Ranks:
        """``ranks`` cut down to what a block of that shape can use."""
        return tuple(min(r, m) for r, m in zip(ranks, self.limits(shape), strict=True))

    @abstractmethod
    def parts(self, layer: nn.Module, ranks: Ranks) -> list[nn.Module]:
        """The layers that stand for ``layer``, in order, on the meta device."""

    @abstractmethod
    def unfoldings(self, block: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """For each rank the matrices, views of ``block``, whose spectra tell what it has to be."""

    @abstractmethod
    def factors(self, block: Tensor, ranks: Ranks) -> list[Tensor]:
        """The weights of :meth:`parts` for one block, which may be laid end to end."""

    @abstractmethod
    def product(self, factors: Sequence[Tensor]) -> Tensor:
        """The block that ``factors`` of one group stand for."""


FACTORIZATIONS: Registry[Factorization] = Registry(
    "factorization", "espalier.structure.factorizations"
)
"""Factorizations, one file each."""


def default_method(layer: nn.Module) -> str:
    """Truncated SVD where there is no kernel to speak of, else Tucker-2 (Kim et al. 2016)."""
    kernel = layer.kernel_size if isinstance(layer, _ConvNd) else (1,)
    return "tucker2" if math.prod(kernel) > 1 else "svd"


def obstacle(layer: nn.Module) -> str:
    """Why no factors can stand for ``layer``; empty if some can."""
    if parametrize.is_parametrized(layer):
        return "is pruned or shared already; factorize before that"
    if type(layer) not in LAYERS:
        kind = "transposed convolution" if "Transpose" in type(layer).__name__ else ""
        return f"a {kind or type(layer).__name__} is not factored"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks)
    if any((*hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        return "has hooks, which its factors would not have"
    return ""


def groups_of(layer: nn.Module) -> int:
    """Groups of a convolution, 1 of a linear layer."""
    return layer.groups if isinstance(layer, _ConvNd) else 1


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight, detached."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def block_shape(layer: nn.Module) -> torch.Size:
    """The shape of one group's weight."""
    shape = weight_of(layer).shape
    return torch.Size((shape[0] // groups_of(layer), *shape[1:]))


def blocks_of(layer: nn.Module) -> tuple[Tensor, ...]:
    """The weights of the layer's groups: views, in a dtype that decompositions are done in."""
    weight = weight_of(layer)
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()
    return weight.chunk(groups_of(layer))


def part(
    layer: nn.Module,
    inputs: int,
    outputs: int,
    *,
    along: Sequence[int] = (),
    groups: int | None = None,
    bias: bool = False,
) -> nn.Module:
    """A layer of the same kind on the meta device, of ``inputs`` to ``outputs`` for each group.

    Parameters
    ----------
    along : sequence of int
        Dimensions of the kernel, from 0, on which it has the extent, stride, padding and dilation
        of ``layer``; on all others it has extent 1.
    groups : int, optional
        Those of ``layer`` if left out.
    """
    dtype = weight_of(layer).dtype
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias, device="meta", dtype=dtype)
    assert isinstance(layer, _ConvNd)
    groups = layer.groups if groups is None else groups
    many = layer.groups
    dims = range(len(layer.kernel_size))

    def on(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(values[d] if d in along else other for d in dims)

    kind: Any = type(layer)
    made: nn.Module = kind(
        inputs * many,
        outputs * many,
        on(layer.kernel_size, 1),
        on(layer.stride, 1),
        layer.padding if isinstance(layer.padding, str) else on(layer.padding, 0),
        on(layer.dilation, 1),
        groups,
        bias,
        layer.padding_mode if along else "zeros",
        device="meta",
        dtype=dtype,
    )
    return made


def product_of(chain: nn.Sequential, method: Factorization) -> Tensor:
    """The weight that a layer's factors stand for, as they are now."""
    groups = groups_of(chain[-1])
    factors = [weight_of(one).chunk(groups) for one in chain]
    return torch.cat([method.product(block) for block in zip(*factors, strict=True)])
