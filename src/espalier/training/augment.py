"""Random changes of a batch of images, drawn from a generator of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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


MIXED = 0.5
"""The share of the samples of a batch that are mixed; the others stay as they are."""


class Mixed(NamedTuple):
    """A batch whose samples are made of two, and what of."""

    x: Tensor
    partners: Tensor
    """(N,) int64: the sample in the batch that the rest of each one is from."""
    share: Tensor
    """(N,) float32: how much of it is its own, in [0, 1]."""

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """Probabilities (N, classes) in place of the labels ``y``, (N,) int64.

        Raises
        ------
        InvalidArgument
            The targets are not labels.
        """
        if y.dim() != 1 or y.is_floating_point():
            found = f"{str(y.dtype).removeprefix('torch.')} of the shape {tuple(y.shape)}"
            raise InvalidArgument(f"mix mixes labels, int64 (N,), not targets that are {found}")
        own, other = (functional.one_hot(labels, classes) for labels in (y, y[self.partners]))
        share = self.share[:, None].to(y.device)
        return share * own + (1 - share) * other


Mix = Callable[[Tensor, torch.Generator], Mixed]


def mixup(x: Tensor, generator: torch.Generator) -> Mixed:
    """s x + (1 - s) x[partner] for half of the samples, s uniform in (0, 1).

    Zhang et al. 2018 (arXiv 1710.09412), with alpha = 1. ``x``: (N, ...).
    """
    partners, share = _drawn(len(x), generator)
    parts = share.view(-1, *[1] * (x.dim() - 1)).to(x)
    return Mixed(torch.lerp(x[partners], x, parts), partners, share)


def cutmix(x: Tensor, generator: torch.Generator) -> Mixed:
    """Half of the images have a box from another one in them, of 0 to 1 of the area.

    Yun et al. 2019 (arXiv 1905.04899), with alpha = 1; where the box reaches beyond the image, its
    share is what of it lies within. ``x``: (N, C, H, W).

    Raises
    ------
    InvalidArgument
        The samples are not images.
    """
    if x.dim() != 4:
        raise InvalidArgument(f"cutmix is for images (N, C, H, W), not for {tuple(x.shape)}")
    partners, share = _drawn(len(x), generator)
    side = (1 - share).sqrt() / 2
    inside = torch.ones(len(x), 1, 1, 1, dtype=torch.bool)
    for dim in (2, 3):
        size = x.shape[dim]
        middle = torch.rand(len(x), generator=generator)
        low, high = (((middle + sign * side) * size).round() for sign in (-1, 1))
        at = torch.arange(size)
        within = (at >= low[:, None]) & (at < high[:, None])
        inside = inside & within.view(-1, 1, *((size, 1) if dim == 2 else (1, size)))
    own = 1 - inside.float().mean((1, 2, 3))
    return Mixed(torch.where(inside.to(x.device), x[partners], x), partners, own)


def _drawn(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Partners, and how much of each sample is to be its own."""
    partners = torch.randperm(n, generator=generator)
    share, mixed = torch.rand(2, n, generator=generator)
    return partners, torch.where(mixed < MIXED, share, torch.ones(()))


MIXES: dict[str, Mix] = {"mixup": mixup, "cutmix": cutmix}
