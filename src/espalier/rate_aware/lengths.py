"""Code lengths that follow the symbols: how many bits a weight between two grid points would take.

The densest coder is adaptive, and tells weights apart by the magnitudes around them. So the density
here is no function to be fitted: every so many steps the symbols as they are now are counted,
in the classes that their neighbours put them into (:mod:`espalier.quantization.rates`), and a
magnitude m has the length -log2 of its share of its class, with a bit for the sign. Between grid
points the length is linear, and that is where the gradient comes from: a weight is drawn towards
zero by what a step less would save, and harder where its neighbours are zero.
"""

from __future__ import annotations

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
    >>> round(lengths(y).item(), 2) == round(bits, 2)
    True
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.places = int(np.prod(shape[2:], dtype=np.int64)) if len(shape) > 2 else 1
        self.classes = torch.zeros(shape, dtype=torch.uint8)
        self.table = torch.zeros(1, HEAD + 1)
        self.slope = torch.zeros(1, HEAD + 1)

    @torch.no_grad()
    def refresh(self, symbols: Tensor) -> float:
        """Count ``symbols`` again; their bits in all."""
        flat = symbols.cpu().numpy().reshape(len(symbols) if symbols.dim() > 1 else 1, -1)
        classes = classes_of(flat, self.places).reshape(-1)
        bits = magnitude_lengths(np.abs(flat.reshape(-1)), classes.astype(np.int64))
        self._set(torch.from_numpy(classes.reshape(self.shape)), torch.from_numpy(bits), symbols)
        return float(self(symbols.float()))

    def _set(self, classes: Tensor, bits: Tensor, like: Tensor) -> None:
        self.classes = torch.empty_like(like, dtype=torch.uint8).copy_(classes)
        bits = bits.to(like.device, torch.float32)
        self.table = bits[:, : HEAD + 1].contiguous()
        self.slope = torch.cat([bits[:, 1 : HEAD + 1] - bits[:, :HEAD], bits[:, HEAD + 1 :]], 1)

    def each(self, symbols: Tensor) -> Tensor:
        """Bits of each symbol."""
        size = symbols.abs()
        low = size.clamp(max=HEAD)
        at = low.long() + self.classes.long() * (HEAD + 1)
        return self.table.flatten()[at] + self.slope.flatten()[at] * (size - low)

    def __call__(self, y: Tensor) -> Tensor:
        """Bits of all weights together, linear between grid points. ``y``: latent / step."""
        size = y.float().abs()
        low = size.detach().floor().clamp_(max=HEAD)
        at = low.long() + self.classes.long() * (HEAD + 1)
        slope = self.slope.flatten()[at]
        # In two parts: the first has no gradient, and the second is one product.
        fixed = self.table.flatten()[at].sum() - (slope * low).sum()
        return fixed + (slope * size).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors, for a run that is resumed."""
        return {"classes": self.classes, "table": self.table, "slope": self.slope}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`, on the device where this one is."""
        device = self.classes.device
        self.classes, self.table, self.slope = (
            state[key].to(device) for key in ("classes", "table", "slope")
        )
