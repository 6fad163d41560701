"""Choosing which weights stay: exact counts, per layer or over the network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from espalier.errors import EspalierWarning
from espalier.options import kept_count


def top(scores: Tensor, k: int) -> Tensor:
    """Mask of exactly ``k`` highest of 1-D ``scores``; among equals the lower index stays.

    Examples
    --------
    >>> import torch
    >>> top(torch.tensor([2.0, 1.0, 2.0, 2.0]), 2).tolist()
    [True, False, True, False]
    """
    n = scores.numel()
    if k >= n:
        return torch.ones_like(scores, dtype=torch.bool)
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(n - k + 1).values
    mask = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    mask[ties[: k - int(mask.sum())]] = True
    return mask


def masks_per_layer(scores: Sequence[Tensor], densities: Sequence[float]) -> list[Tensor]:
    """A mask for each tensor of scores, each with its own density."""
    return [
        top(s.flatten(), kept_count(d, s.numel())).view(s.shape)
        for s, d in zip(scores, densities, strict=True)
    ]


def masks_global(scores: Sequence[Tensor], density: float, names: Sequence[str]) -> list[Tensor]:
    """One threshold over all tensors together; warns by name where a layer is left empty."""
    flat = torch.cat([s.flatten().float() for s in scores])
    chosen = top(flat, kept_count(density, flat.numel()))
    parts = chosen.split([s.numel() for s in scores])
    empty = [name for name, part in zip(names, parts, strict=True) if not part.any()]
    if empty:
        warnings.warn(
            f"global pruning to density {density:g} leaves nothing of {', '.join(empty)}",
            EspalierWarning,
            stacklevel=3,
        )
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]
