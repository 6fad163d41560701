"""Random changes of a batch of images, drawn from a generator of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from espalier.errors import InvalidArgument

Augment = Callable[[Tensor, torch.Generator], Tensor]


def shift(x: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Move each image by up to ``pixels`` in both directions; what comes in is the image's minimum.

    ``x``: (N, C, H, W).
    """
    n, _, height, width = x.shape
    padded = functional.pad(x, (pixels,) * 4, value=float(x.min()))
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=generator)
    rows = (dy + torch.arange(height))[:, None, :, None]
    columns = (dx + torch.arange(width))[:, None, None, :]
    return padded[
        torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns
    ]


def shift_1(x: Tensor, generator: torch.Generator) -> Tensor:
    """:func:`shift` by one pixel at most, for small networks that would learn no more."""
    return shift(x, generator, 1)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def shift_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """:func:`shift` by up to 4 pixels and :func:`flip`: the usual for CIFAR (He et al. 2015)."""
    return flip(shift(x, generator, 4), generator)


def affine(
    x: Tensor,
    generator: torch.Generator,
    degrees: float = 12.0,
    scale: float = 0.1,
    shear: float = 0.1,
    pixels: float = 2.0,
) -> Tensor:
    """Turn, scale, shear and move each image, each by a uniform draw; bilinear.

    Turned by up to ``degrees`` either way, scaled by ``1 - scale`` to ``1 + scale``, sheared by up
    to ``shear`` of its width, moved by up to ``pixels`` in both directions; what comes in is the
    image's minimum. ``x``: (N, C, H, W).
    """
    n, _, height, width = x.shape
    turn, size, slant, dy, dx = torch.rand(5, n, generator=generator) * 2 - 1
    angle, factor = turn * math.radians(degrees), 1 + size * scale
    cosine, sine, slope = angle.cos() / factor, angle.sin() / factor, slant * shear
    # Where in the original each new pixel comes from, in the coordinates of affine_grid: -1 to 1.
    where = torch.stack(
        [
            torch.stack([cosine, slope * cosine - sine, 2 * pixels * dx / width], 1),
            torch.stack([sine, slope * sine + cosine, 2 * pixels * dy / height], 1),
        ],
        1,
    )
    grid = functional.affine_grid(where.to(x), list(x.shape), align_corners=False)
    low = x.min()
    return functional.grid_sample(x - low, grid, align_corners=False) + low


AUGMENTATIONS: dict[str, Augment] = {
    "shift": shift,
    "shift-1": shift_1,
    "flip": flip,
    "shift-flip": shift_flip,
    "affine": affine,
}


def augmentation(name: str | None) -> Augment | None:
    """The augmentation of that name; None for None."""
    if name is None:
        return None
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise InvalidArgument(f"no augmentation is called {name!r}; known are {known}")
    return AUGMENTATIONS[name]
