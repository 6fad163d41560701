"""Tensors that are trained on grids: which, and of each its parametrization and code lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from espalier.entropy.multiples import common_step
from espalier.errors import InvalidArgument
from espalier.options import Lookup
from espalier.parametrization import codes_dtype, mask_of, set_codes, set_grid
from espalier.parametrization.rate_aware_weight import RateAwareWeight
from espalier.rate_aware.lengths import CodeLengths
from espalier.targets import Skipped, Target, find_targets, refuse_nonfinite

FINEST = 64
"""No step begins finer than the root mean square of the weights over this."""
TINY = 1e-6
"""Under the root of a norm, whose gradient is finite at zero then."""
STEP_OF_ZEROS = 0.01
"""The first step of a tensor of zeros, a bias that was never trained."""

MOST_KEPT = 1 << 16
"""Values of which there are more lie on no grid that could be kept."""

Step = float | Literal["kept"]
Steps = Step | Mapping[str, Step | None]
"""First steps of grids, in standard deviations, or what values are multiples of; None: no grid."""


@dataclass(frozen=True)
class GridTensor:
    """One tensor on its grid. ``bits``: by the adaptive code lengths, headers left out."""

    name: str
    elements: int
    nonzero: int
    levels: int
    step: float
    bits: float


@dataclass(eq=False)
class GridInTraining:
    """A tensor that is trained on its grid."""

    target: Target
    held: RateAwareWeight
    lengths: CodeLengths

    @staticmethod
    def on(target: Target, first: Step) -> GridInTraining:
        """Put a weight on a grid: its first step in standard deviations, or what it has."""
        weight = target.value
        if isinstance(first, str):
            step = _kept_step(weight) or _spread(weight)
        else:
            step = first * _spread(weight)
        held = RateAwareWeight(step, weight, mask_of(target))
        held.train(target.sites[0].module.training)
        set_grid(target, held)
        return GridInTraining(target, held, CodeLengths(tuple(weight.shape)))

    def symbols(self) -> Tensor:
        """Which multiples of the step the weights are now, int32."""
        return self.held.symbols(self.target.latent)

    def bits(self, groups: float) -> Tensor:
        """The bits of all weights, and ``groups`` times the norms of rows and of input channels."""
        held, latent = self.held, self.target.latent
        noise = held.noise(latent)
        bits = self.lengths(latent, held.log_step, held.mask, noise)
        if groups and latent.dim() > 1:
            y = held.scaled(latent, noise)
            norms = (y.movedim(d, 0).flatten(1).square().sum(1) for d in (0, 1))
            bits = bits + groups * sum((norm + TINY).sqrt().sum() for norm in norms)
        return bits

    def fix(self) -> None:
        """Keep the symbols as they are; the step goes on learning."""
        self.held.fix(self.target.latent)

    @torch.no_grad()
    def move(self, moves: Tensor) -> None:
        """Add to the symbols; weights that move come to lie on the grid."""
        moved = (self.symbols() + moves) * self.held.spacing
        self.target.latent.copy_(torch.where(moves != 0, moved, self.target.latent))

    @torch.no_grad()
    def described(self) -> GridTensor:
        """What there is to say about it."""
        symbols = self.symbols()
        return GridTensor(
            self.target.name,
            symbols.numel(),
            int(symbols.count_nonzero()),
            len(torch.unique(symbols)),
            float(self.held.step.detach()),
            self.lengths.refresh(symbols),
        )

    @torch.no_grad()
    def finish(self) -> None:
        """Leave a codebook of multiples of the step, zero being pruned."""
        symbols, step = self.symbols(), self.held.step.detach()
        multiples, codes = torch.unique(symbols[symbols != 0], return_inverse=True)
        full = torch.zeros_like(symbols)
        full[symbols != 0] = codes.to(full.dtype) + 1
        narrow = full.to(codes_dtype(len(multiples)))
        set_codes(self.target, narrow, step * multiples.to(step), latent=False)


@torch.no_grad()
def _kept_step(weight: Tensor) -> float | None:
    """The step that all weights are multiples of, if they lie on a grid."""
    levels = torch.unique(weight.detach()[weight != 0])
    if levels.numel() > MOST_KEPT or levels.dtype == torch.bfloat16:
        return None
    found = common_step(levels.cpu().numpy())
    return found[0] if found else None


@torch.no_grad()
def _spread(weight: Tensor) -> float:
    """Standard deviation of the weights that are not zero, or what stands for it."""
    values = weight.detach()[weight != 0].double()
    if not values.numel():
        return STEP_OF_ZEROS
    size = float(values.square().mean().sqrt())
    return max(float(values.std(correction=0)), size / FINEST)


def _check_grid(value: object) -> Step:
    if value == "kept":
        return "kept"
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise InvalidArgument(f"grid must be a finite number above 0, or 'kept', not {value!r}")


def chosen_targets(
    model: nn.Module, steps: Steps, biases: bool
) -> tuple[list[tuple[Target, Step]], tuple[Skipped, ...]]:
    """Every tensor that ``steps`` has a value for, with it; and the others, with the reason."""
    lookup: Lookup[Step] = Lookup(steps, "grid", _check_grid)
    targets = [t for t in find_targets(model) if t.by_default or biases]
    values = lookup.resolve([(t.answers_to, t.kind) for t in targets])
    skipped, chosen = [], []
    for target, value in zip(targets, values, strict=True):
        if value is None:
            skipped.append(Skipped(target.name, "no grid is set for it"))
        elif target.obstacle or not target.value.numel():
            skipped.append(Skipped(target.name, target.obstacle or "it has no elements"))
        else:
            refuse_nonfinite(target, target.value)
            chosen.append((target, value))
    if not chosen:
        raise InvalidArgument("grid: the model has no tensor that can be put on one")
    return chosen, tuple(skipped)
