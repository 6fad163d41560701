"""Code lengths that follow the symbols: how many bits a weight between two grid points would take.

The densest coder is adaptive, and tells weights apart by the magnitudes around them. So the density
here is no function to be fitted: every so many steps the symbols as they are now are counted,
in the classes that their neighbours put them into (:mod:`espalier.quantization.rates`), and a
magnitude m has the length -log2 of its share of its class, with a bit for the sign. Between grid
points the length is linear, and that is where the gradient comes from: a weight is drawn towards
zero by what a step less would save, and harder where its neighbours are zero.

Where most symbols are ones, an adaptive coder writes a one in fewer bits than a zero. Going by that
alone, weights that the loss has no use for would be led to one, and all would stay as they are; so
a step away from zero always counts as :data:`LEAST_SLOPE` bits at least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.quantization.rates import classes_of

Array = NDArray[Any]

HEAD = 8
"""Magnitudes below this are counted one by one; beyond it lies a geometric tail."""
PRIOR = 6.0
"""So many weights of the whole tensor's mixture are added to each class."""
LEAST_SLOPE = 0.25
"""Bits that a step away from zero counts as, if by the symbols it would be fewer."""
_UNSEEN = 0.3


def magnitude_lengths(magnitudes: Array, classes: Array) -> Array:
    """Bits of a symbol of each magnitude in each class, and of one more step beyond.

    Parameters
    ----------
    magnitudes : integer array (n,)
        Absolute values of the symbols.
    classes : integer array (n,)

    Returns
    -------
    float64 array (classes, HEAD + 2)
        Bits at 0 to HEAD, and what each step beyond adds.

    Examples
    --------
    >>> bits = magnitude_lengths(np.array([0, 0, 0, 0, 1, 1, 2, 1]), np.zeros(8, np.int64))
    >>> bool(bits[0, 0] < bits[0, 1] < bits[0, 2])
    True
    """
    number = int(classes.max(initial=0)) + 1
    head = np.minimum(magnitudes, HEAD)
    counts = np.bincount(classes * (HEAD + 1) + head, minlength=number * (HEAD + 1))
    counts = counts.reshape(number, HEAD + 1).astype(np.float64)
    beyond = np.bincount(classes, np.maximum(magnitudes - HEAD, 0), number)
    total = counts.sum(0)
    share = (total + _UNSEEN) / (total.sum() + _UNSEEN * total.size)
    mixed = (counts + PRIOR * share) / (counts.sum(1, keepdims=True) + PRIOR)
    bits = -np.log2(mixed)
    # A geometric tail: with mean excess x, one step more has the probability x / (1 + x).
    tail = (beyond + PRIOR * beyond.sum() / max(total[HEAD], 1)) / (counts[:, HEAD] + PRIOR)
    more = -np.log2(np.maximum(tail, _UNSEEN) / (1 + np.maximum(tail, _UNSEEN)))
    bits[:, HEAD] -= np.log2(1 / (1 + np.maximum(tail, _UNSEEN)))
    bits[:, 1:] += 1  # the sign
    return np.column_stack([bits, more])


class CodeLengths:
    """The bits of one tensor on its grid, as a function of latent / step.

    Parameters
    ----------
    shape : tuple of int
        Of the weight: rows, channels, places of a kernel.

    Examples
    --------
    >>> lengths = CodeLengths((4, 4))
    >>> symbols = torch.tensor([[0, 0, 0, 1]] * 4)
    >>> bits = lengths.refresh(symbols)
    >>> y = symbols.float().requires_grad_()
    >>> abs(lengths(y).item() - bits) < 1e-3
    True
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.places = int(np.prod(shape[2:], dtype=np.int64)) if len(shape) > 2 else 1
        self.rows = torch.zeros(shape, dtype=torch.int32)
        self.intercept = self.slope = torch.zeros(HEAD + 1)

    @torch.no_grad()
    def refresh(self, symbols: Tensor) -> float:
        """Count ``symbols`` again; their bits in all, as they are."""
        flat = symbols.cpu().numpy().reshape(len(symbols) if symbols.dim() > 1 else 1, -1)
        classes = classes_of(flat, self.places).reshape(-1).astype(np.int32)
        magnitudes = np.abs(flat.reshape(-1))
        bits = magnitude_lengths(magnitudes, classes)
        slope = np.column_stack([np.diff(bits[:, : HEAD + 1], axis=1), bits[:, HEAD + 1]])
        slope = np.maximum(slope, LEAST_SLOPE)
        knots = bits[:, :1] + np.cumsum(slope, axis=1) - slope
        intercept = knots - slope * np.arange(HEAD + 1)
        self.slope, self.intercept = (
            torch.from_numpy(part.reshape(-1)).to(symbols.device, torch.float32)
            for part in (slope, intercept)
        )
        rows = torch.from_numpy((HEAD + 1) * classes).view(self.shape)
        self.rows = torch.empty_like(symbols).copy_(rows)  # in the memory format of the weight
        head = np.minimum(magnitudes, HEAD)
        return float((bits[classes, head] + bits[classes, -1] * (magnitudes - head)).sum())

    def each(self, y: Tensor) -> Tensor:
        """Bits of each weight, linear between grid points. ``y``: latent / step."""
        size = y.float().abs()
        slope, intercept = self._lines(size.detach())
        return slope * size + intercept

    def _lines(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept of each weight's bits, of the shape of ``size``, |latent / step|."""
        if self.rows.device != size.device or self.rows.stride() != size.stride():
            self._follow(size)
        # Each class has a row of lines; the last of them goes on beyond the head.
        line = size.clamp(max=HEAD).int().add_(self.rows)
        # In the memory format of the weight: mixed formats are slow.
        order = sorted(range(line.dim()), key=line.stride, reverse=True)
        back = np.argsort(order).tolist()
        inner = line.permute(order)
        slope, intercept = (
            table.index_select(0, inner.flatten()).view(inner.shape).permute(back)
            for table in (self.slope, self.intercept)
        )
        return slope, intercept

    def _follow(self, weight: Tensor) -> None:
        """The model was moved to another device or memory format."""
        self.rows = torch.empty_like(weight, dtype=torch.int32).copy_(self.rows)
        self.slope, self.intercept = (t.to(weight.device) for t in (self.slope, self.intercept))

    def __call__(
        self,
        latent: Tensor,
        log_step: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Bits of all weights together.

        Parameters
        ----------
        latent : Tensor
            Weights before rounding.
        log_step : Tensor, optional
            Logarithm of their step, which is 1 by default.
        mask : bool Tensor, optional
            False where a weight is pruned: it has the bits of a zero, and no gradient.
        noise : Tensor, optional
            Added to latent / step.
        """
        log_step = latent.new_zeros(()) if log_step is None else log_step
        bits: Tensor = _Bits.apply(latent, log_step, mask, noise, self._lines)
        return bits

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors, for a run that is resumed."""
        return {"rows": self.rows, "slope": self.slope, "intercept": self.intercept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`, on the device where this one is."""
        device = self.rows.device
        self.rows = torch.empty_like(self.rows).copy_(state["rows"])
        self.slope, self.intercept = (state[key].to(device) for key in ("slope", "intercept"))


class _Bits(torch.autograd.Function):
    """The bits of all weights, with the gradient at hand already: one tensor is kept for it."""

    @staticmethod
    def forward(
        ctx: Any,
        latent: Tensor,
        log_step: Tensor,
        mask: Tensor | None,
        noise: Tensor | None,
        lines: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        step = log_step.float().exp()
        y = latent.float() / step
        if noise is not None:
            y = y + noise
        if mask is not None:
            y = y * mask
        size = y.abs()
        slope, intercept = lines(size)
        sloping = (slope * size).sum()
        pull = slope.mul_(y.sign())
        # By ln step, y goes with -latent / step: what it is without the noise.
        by_log_step = -sloping if noise is None else (pull * noise).sum() - sloping
        ctx.save_for_backward(pull.div_(step), by_log_step)
        return sloping + intercept.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        latent, log_step = ctx.saved_tensors
        return gradient * latent, gradient * log_step, None, None, None
