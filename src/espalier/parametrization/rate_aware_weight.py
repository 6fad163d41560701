"""A weight on a uniform grid whose step is learned, while it is trained.

weight = step * q, q = round(latent / step). How q follows the latent weight in training:

==================== ===================================================================
``straight-through`` q in the forward pass, and the gradient as if q were latent / step
                     (Bengio et al. 2013); the step's is round(y) - y, y = latent / step,
                     times the weight's (Esser et al. 2020, arXiv 1902.08153)
``noise``            y + u, u uniform in (-1/2, 1/2), a new draw at each pass
                     (Balle et al. 2017, arXiv 1611.01704)
``soft``             a smooth function of y that comes closer to rounding as ``sharpness`` grows
                     (Agustsson and Theis 2020, arXiv 2006.09952, section 3)
==================== ===================================================================

In evaluation mode the weight is always on its grid. With fixed symbols (:meth:`fix`) it is so in
training too, and the step alone learns.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument

ROUNDINGS = ("straight-through", "noise", "soft")
_LEAST_STEP = 1e-12


def soft_round(y: Tensor, sharpness: float) -> Tensor:
    """floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2)), r = y - floor(y) - 1/2, a the sharpness.

    Examples
    --------
    >>> soft_round(torch.tensor([0.0, 0.25, 0.5, 1.0]), 8.0)
    tensor([0.0000, 0.0177, 0.5000, 1.0000])
    """
    low = y.detach().floor()
    return low + 0.5 + torch.tanh(sharpness * (y - low - 0.5)) / (2 * math.tanh(sharpness / 2))


class _StraightThrough(torch.autograd.Function):
    """step * round(latent / step), and its gradients as the table above has them.

    Nothing is kept for the backward pass but the weight, which the layer keeps anyway.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(latent: Tensor, log_step: Tensor, mask: Tensor | None) -> Tensor:
        step = log_step.exp()
        return _kept(step * nearest(latent / step), mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        latent, _, mask = inputs
        ctx.save_for_backward(latent, mask, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        latent, mask, weight = ctx.saved_tensors
        gradient = _kept(gradient, mask)
        # step (round(y) - y) is how far the weight lies from the latent one.
        return gradient, (gradient * (weight - latent)).sum(), None


def nearest(y: Tensor) -> Tensor:
    """``y`` rounded; what becomes zero is +0."""
    return y.round() + 0.0


def _kept(values: Tensor, mask: Tensor | None) -> Tensor:
    """``values``, +0 where ``mask`` is False."""
    return values if mask is None else torch.where(mask, values, values.new_zeros(()))


class RateAwareWeight(nn.Module):
    """weight = step * round(latent / step) where kept, +0 elsewhere.

    Parameters
    ----------
    step : float
        To begin with. What is learned is its logarithm.
    like : Tensor
        The weight: device and dtype of the step.
    mask : bool Tensor of the weight's shape, optional
        False where the weight is pruned and stays so.

    Raises
    ------
    InvalidArgument
        The step is not a positive number.

    Examples
    --------
    >>> grid = RateAwareWeight(0.5, torch.zeros(3)).eval()
    >>> grid(torch.tensor([0.2, 0.3, -1.1])).tolist()
    [0.0, 0.5, -1.0]
    """

    espalier: ClassVar[bool] = True
    mask: Tensor | None
    unit: Tensor | None

    def __init__(self, step: float, like: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        if not (math.isfinite(step) and step >= _LEAST_STEP):
            raise InvalidArgument(f"the step of a grid must be positive, not {step}")
        self.log_step = nn.Parameter(like.new_tensor(math.log(step)))
        self.register_buffer("mask", mask)
        self.register_buffer("unit", None)
        self.rounding = "straight-through"
        self.sharpness = 1.0
        self.trains = False

    @property
    def step(self) -> Tensor:
        """The step, above zero."""
        return self.log_step.exp()

    @property
    def spacing(self) -> Tensor:
        """What the latent weight is divided by: the step, or the one that it had at :meth:`fix`."""
        return self.step if self.unit is None else self.unit

    @torch.no_grad()
    def fix(self, latent: nn.Parameter) -> None:
        """Keep the symbols as they are from here, whatever becomes of the step."""
        if self.unit is None:
            self.unit = self.step.clone()
        self.trains = self.trains or latent.requires_grad
        latent.requires_grad_(False).grad = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Symbols are fixed after it just if they are in the state."""
        fixed = f"{prefix}unit" in state_dict
        self.unit = torch.ones_like(self.log_step.detach()) if fixed else None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, latent: Tensor) -> Tensor:
        weight = self._on_grid(latent)
        if weight.stride() != latent.stride():  # results inherit it, and with it their speed
            weight = torch.empty_like(latent).copy_(weight)
        return weight

    def _on_grid(self, latent: Tensor) -> Tensor:
        learning = self.training and self.unit is None
        if learning and self.rounding == "straight-through":
            weight: Tensor = _StraightThrough.apply(latent, self.log_step, self.mask)
            return weight
        if not learning:
            y = nearest((latent if self.unit is None else latent.detach()) / self.spacing)
        elif self.rounding == "noise":
            y = self.scaled(latent, self.noise(latent))
        else:
            y = soft_round(latent / self.step, self.sharpness)
        return _kept(self.step * y, self.mask)

    def noise(self, latent: Tensor) -> Tensor | None:
        """Where symbols follow by noise: a draw of it, uniform in (-1/2, 1/2)."""
        if self.training and self.rounding == "noise":
            return torch.rand_like(latent) - 0.5
        return None

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    @torch.no_grad()
    def symbols(self, latent: Tensor) -> Tensor:
        """q, int32, 0 where pruned."""
        symbols = (latent / self.spacing).round().int()
        return symbols if self.mask is None else symbols * self.mask

    def scaled(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the rate is of: latent / step, with ``noise`` added; 0 where pruned."""
        y = latent / self.step
        if noise is not None:
            y = y + noise
        return y if self.mask is None else y * self.mask
