"""A layer that could be factored: what ranks it needs, and what its factors would cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument, first_line
from espalier.modes import evaluating
from espalier.structure.cost import cost
from espalier.structure.factorization import (
    LAYERS,
    Factorization,
    Ranks,
    block_shape,
    blocks_of,
    part,
    weight_of,
)
from espalier.structure.spectrum import Spectrum, largest, spectrum

Shapes: TypeAlias = list[tuple[int, ...]]


@dataclass
class Candidate:
    """A layer that has factors, if they are cheaper than itself.

    ``seen``: the shapes that go into it, where an example was given.
    """

    name: str
    layer: nn.Module
    method: Factorization
    seen: Shapes
    spectra: tuple[tuple[Spectrum, ...], ...] = ()
    costs: dict[Ranks, tuple[int, int]] = field(default_factory=dict)

    @property
    def full(self) -> Ranks:
        """The ranks at which nothing is lost."""
        return self.method.limits(block_shape(self.layer))

    def look(self) -> None:
        """Find the spectra."""
        found = [self.method.unfoldings(block) for block in blocks_of(self.layer)]
        self.spectra = tuple(
            tuple(spectrum(matrix) for matrices in of_rank for matrix in matrices)
            for of_rank in zip(*found, strict=True)
        )

    def ranks_for(self, energy: float | None) -> Ranks:
        """The ranks that hold the share ``energy`` of each unfolding; None: variational Bayes."""
        wanted = tuple(largest(of_rank, energy) for of_rank in self.spectra)
        return self.method.clip(block_shape(self.layer), wanted)

    def own(self) -> tuple[int, int]:
        """(weights, multiply-accumulates) of the layer itself."""
        return self._cost((), lambda: [_alike(self.layer)])

    def cost(self, ranks: Ranks) -> tuple[int, int]:
        """(weights, multiply-accumulates) of its factors."""
        return self._cost(ranks, lambda: self.method.parts(self.layer, ranks))

    def _cost(self, ranks: Ranks, make: Callable[[], list[nn.Module]]) -> tuple[int, int]:
        if ranks not in self.costs:
            chain = nn.Sequential(*make())
            weights = sum(weight_of(one).numel() for one in chain)
            dtype = weight_of(self.layer).dtype
            macs = sum(
                cost(chain, torch.empty(shape, device="meta", dtype=dtype)).macs
                for shape in self.seen
            )
            self.costs[ranks] = weights, macs
        return self.costs[ranks]

    def dearer(self, ranks: Ranks) -> str:
        """Why the factors are no gain; empty if they are."""
        (weights, macs), (ours, our_macs) = self.own(), self.cost(ranks)
        at = f"at rank {', '.join(map(str, ranks))}"
        if ours >= weights:
            return f"{self.method.name} {at} has {ours:,} weights, the layer {weights:,}"
        if self.seen and our_macs > macs:
            return (
                f"{self.method.name} {at} takes {our_macs:,} multiply-accumulates, the layer "
                f"{macs:,}"
            )
        return ""

    def saved(self, ranks: Ranks) -> tuple[int, int]:
        """(weights, multiply-accumulates) that go: none where the factors are no gain."""
        if self.dearer(ranks):
            return 0, 0
        (weights, macs), (ours, our_macs) = self.own(), self.cost(ranks)
        return weights - ours, macs - our_macs

    @torch.no_grad()
    def decomposed(self, ranks: Ranks) -> tuple[list[Tensor], float]:
        """The weights of the factors, all groups laid end to end, and the relative error."""
        weight = weight_of(self.layer)
        of_block = []
        wrong = norm = 0.0
        for block in blocks_of(self.layer):
            factors = self.method.factors(block, ranks)
            difference = self.method.product(factors).sub_(block)
            wrong += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
            norm += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            of_block.append(factors)
        together = [
            _plain(factors[0] if len(factors) == 1 else torch.cat(factors), weight.dtype)
            for factors in zip(*of_block, strict=True)
        ]
        return together, (wrong / norm) ** 0.5


def _plain(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """In row-major order, with no other strides where the extent is 1: those say channels last."""
    return factor.to(dtype).reshape(-1).view(factor.shape)


def _alike(layer: nn.Module) -> nn.Module:
    outputs, inputs, *kernel = block_shape(layer)
    return part(layer, inputs, outputs, along=range(len(kernel)))


@torch.no_grad()
def input_shapes(model: nn.Module, example: Any) -> dict[str, Shapes]:
    """The shapes that go into each layer when ``model`` is run once, in evaluation mode."""
    seen: dict[str, Shapes] = {}

    def hook(name: str) -> Any:
        def look(_module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                seen.setdefault(name, []).append(tuple(inputs[0].shape))

        return look

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with evaluating(model):
            model(*example) if isinstance(example, tuple) else model(example)
    except Exception as error:
        raise InvalidArgument(
            f"the model cannot be run on the example inputs: {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen
