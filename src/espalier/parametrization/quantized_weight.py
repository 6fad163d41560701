"""A weight on a grid, over a latent weight that trains: the straight-through estimator."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espalier.fixed_point import Block, from_groups, grid_shape, to_groups
from espalier.grids.grid import Grid, grid_from_json

LEAST_SCALE = 2.0**-100
"""No trained scale is smaller: it must stay above 0, and its inverse finite."""


@dataclasses.dataclass(frozen=True, eq=False)
class OnGrid:
    """A quantized weight as it is now. Numbers (of the weight's shape) are whole, as floats."""

    numbers: Tensor
    scales: Tensor
    zeros: Tensor


class QuantizedWeight(nn.Module):
    """weight = (number - zero) * scale, the numbers being those of the latent weight behind it.

    In training the gradient goes straight through to the latent weight, as the method's ``slope``
    has it, and to scales that learn. Where ``mask`` is False the weight is +0 and learns nothing.

    Parameters
    ----------
    method : Grid
    block : tuple of int
        What of the weight has a scale of its own.
    scales, zeros : Tensor, one row for each block
        Zeros are whole numbers.
    mask : bool Tensor of the weight's shape, optional

    Notes
    -----
    Its ``state_dict`` has ``method``, a text in UTF-8 that says which method and blocks these are,
    so that :func:`espalier.attach` can put it on a fresh model; ``scales``, ``zeros``, ``mask``.
    """

    espalier: ClassVar[bool] = True

    def __init__(
        self, method: Grid, block: Block, scales: Tensor, zeros: Tensor, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        self.grid, self.block = method, tuple(block)
        text = json.dumps({"block": self.block, "grid": json.loads(method.to_json())})
        self.register_buffer("method", torch.tensor(list(text.encode()), dtype=torch.uint8))
        # 32 bits: gloo, which sends buffers between processes, knows no integers of 16.
        self.register_buffer("zeros", zeros.to(torch.int32))
        self.register_buffer("mask", mask)
        if method.trains_scale:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)

    zeros: Tensor
    mask: Tensor | None
    scales: Tensor

    @classmethod
    def like(cls, parts: dict[str, Tensor], shape: torch.Size, device: Any) -> QuantizedWeight:
        """One that ``load_state_dict`` can fill with ``parts``; ValueError if they are none."""
        written = json.loads(bytes(parts["method"].tolist()))
        block = tuple(int(n) for n in written["block"])
        grid_shape(tuple(shape), block)
        method = grid_from_json(json.dumps(written["grid"]))
        mask = torch.ones(shape, dtype=torch.bool, device=device) if "mask" in parts else None
        scales = torch.ones_like(parts["scales"], device=device)
        return cls(method, block, scales, torch.zeros_like(parts["zeros"], device=device), mask)

    def kept(self, latent: Tensor) -> Tensor:
        """The mask, or one that keeps all: rows of blocks."""
        mask = torch.ones_like(latent, dtype=torch.bool) if self.mask is None else self.mask
        return to_groups(mask, self.block)

    def forward(self, latent: Tensor) -> Tensor:
        values = to_groups(latent, self.block).to(_wide(latent.dtype))
        kept = self.kept(latent)
        if torch.is_grad_enabled():
            weight = self._through(values, kept)
        else:
            weight = self.grid.values(*self._on_grid(values, kept))
        if self.mask is not None:
            weight = torch.where(kept, weight, weight.new_zeros(()))
        weight = from_groups(weight.to(latent.dtype), tuple(latent.shape), self.block)
        if weight.stride() != latent.stride():  # results inherit it, and with it their speed
            weight = torch.empty_like(latent).copy_(weight)
        return weight

    def _on_grid(self, values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scales, zeros = self.scales.to(values.dtype), self.zeros.to(values.dtype)
        if self.grid.live:
            scales = self.grid.rescale(values.double(), kept).to(values.dtype)
        elif self.grid.trains_scale and self.grid.parts == 1:
            scales = scales.clamp_min(LEAST_SCALE)
        with torch.no_grad():
            # Plus zero: no number is -0, which a file does not know.
            numbers = self.grid.round(values, kept, scales, zeros).to(values.dtype) + 0.0
        return numbers, scales, zeros

    def _through(self, values: Tensor, kept: Tensor) -> Tensor:
        """The values, to the bit, with the derivatives of the straight-through estimator."""
        numbers, scales, zeros = self._on_grid(values, kept)
        with torch.no_grad():
            slope = self.grid.slope(values, numbers, scales)
            rest = self.grid.rest(values, scales, zeros)
            bounds = self.grid.bounds(scales, zeros)
        if bounds is not None:
            values = _Bounded.apply(values, *bounds)
        if self.grid.trains_scale:
            share = (values.shape[-1] * max(abs(self.grid.numbers[0]), 1)) ** -0.5
            scales = scales.detach() + share * (scales - scales.detach())
        weight = self.grid.values(numbers, scales, zeros)
        weight = weight + slope * (values - values.detach())
        if isinstance(rest, Tensor):
            weight = weight - rest * (scales - scales.detach())
        return weight

    @torch.no_grad()
    def on_grid(self, latent: Tensor) -> OnGrid:
        """Numbers, scales and zeros of ``latent`` as it is; the number is the zero where pruned."""
        values = to_groups(latent, self.block).to(_wide(latent.dtype))
        kept = self.kept(latent)
        numbers, scales, zeros = self._on_grid(values, kept)
        if self.mask is not None:
            numbers = torch.where(kept, numbers, zeros)
        return OnGrid(from_groups(numbers, tuple(latent.shape), self.block), scales, zeros)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"{self.grid}, block={self.block}"


class _Bounded(torch.autograd.Function):
    """The same values; no gradient that would lead one that is out of bounds farther off."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(values > high, values < low)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        over, under = ctx.saved_tensors
        (gradient,) = gradients
        away = (over & (gradient < 0)) | (under & (gradient > 0))
        return gradient.masked_fill(away, 0), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
