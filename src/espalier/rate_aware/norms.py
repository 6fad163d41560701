"""Batch norms as what they are in evaluation: a scale and a shift of each channel, which train.

The scales are then the steps of single channels, on a grid of their own, and the two vectors of
statistics are constant, which takes next to nothing in a file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from espalier.quantization.norms import BatchNorm, affine_of, set_affine
from espalier.targets import unwrap


@torch.no_grad()
def freeze_norms(model: nn.Module) -> list[RemovableHandle]:
    """Hold every batch norm that has statistics and scales in evaluation mode, statistics 0 and 1.

    What the network computes in evaluation stays the same, up to rounding; of a norm that has such
    statistics already, to the last bit.

    Returns
    -------
    list
        To be removed when the batch norms are to follow their batches again.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm(torch.randn(8, 2))
    >>> hooks = freeze_norms(norm)
    >>> norm.train()(torch.ones(1, 2)).shape, norm.running_mean.tolist()
    (torch.Size([1, 2]), [0.0, 0.0])
    """
    hooks = []
    for norm in unwrap(model).modules():
        if isinstance(norm, BatchNorm) and norm.affine and norm.running_mean is not None:
            if not _is_constant(norm):
                set_affine(norm, *affine_of(norm))
            hooks.append(norm.register_forward_pre_hook(_stay))
    return hooks


def _is_constant(norm: Any) -> bool:
    """Whether its statistics are what :func:`freeze_norms` leaves."""
    return not (norm.running_mean.any() or norm.running_var.ne(1 - norm.eps).any())


def _stay(norm: nn.Module, _inputs: Any) -> None:
    norm.training = False
