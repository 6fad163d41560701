"""Pruned weights: a mask, and how it lies in memory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

PRUNED = 0
"""The code of a pruned weight; the code of centroid i is i + 1."""


class Mask(nn.Module):
    """weight = latent where kept, +0 elsewhere.

    Parameters
    ----------
    mask : bool Tensor of the weight's shape
        True where the weight is kept.

    Notes
    -----
    ``where`` and not a product, so that pruned weights are +0 and never -0 or NaN. With
    ``straight_through`` the gradient reaches the pruned weights too, so that one that was cut in
    error can grow back before the mask is estimated again (Guo et al. 2016, arXiv 1608.04493).
    """

    espalier: ClassVar[bool] = True

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.straight_through = False

    mask: Tensor

    def forward(self, latent: Tensor) -> Tensor:
        kept = torch.where(self.mask, latent, latent.new_zeros(()))
        if self.straight_through:
            return latent + (kept - latent).detach()
        return kept

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def channels_last(tensor: Tensor) -> bool:
    """Whether a convolution's weight or codes lie in memory with the channels last.

    By the strides: a 1x1 kernel lies both ways at once, and only they say which was meant.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        tensor.dim() in formats
        and (tensor.stride(1), tensor.stride(-1)) == (1, tensor.shape[1])
        and tensor.is_contiguous(memory_format=formats[tensor.dim()])
    )


def laid_out(field: Tensor, weight: Tensor) -> Tensor:
    """``field`` in the memory format of ``weight``: results inherit it, and with it their speed."""
    return torch.empty_like(weight, dtype=field.dtype).copy_(field)
