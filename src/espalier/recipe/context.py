"""What a stage works on, and what stages have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from espalier.parametrization import current, mask_of
from espalier.pruning.fisher import Batches
from espalier.recipe.board import Board
from espalier.recipe.refs import Split
from espalier.recipe.schema import Recipe
from espalier.samples import Samples
from espalier.targets import find_targets

TEACHERS = "teacher*.pt"
"""In the folder of a run: the network as the last ``train`` stage left it, ``teacher.pt``, and
those that were trained to teach with it, ``teacher-01.pt`` and so on."""


@dataclass(frozen=True)
class Context:
    """What a stage works on. ``index``: its place in the recipe, from 0."""

    model: nn.Module
    split: Split
    recipe: Recipe
    folder: Path
    index: int
    progress: Callable[[int, int, str], None] | None
    board: Board | None = None

    def checkpoint(self, part: int = 0) -> Path:
        """Where this stage keeps its epochs, or those of one of its parts, from 1."""
        of = f"-{part:02d}" if part else ""
        return self.folder / f"stage-{self.index + 1:02d}{of}.pt"

    def checkpoints(self) -> list[Path]:
        """All that are there."""
        return sorted(self.folder.glob(f"stage-{self.index + 1:02d}*.pt"))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def seed(self) -> int:
        """A seed of this stage's own."""
        return self.recipe.seed * 1000 + self.index


def steps_per_epoch(context: Context, batch_size: int) -> int:
    data = context.split.train
    return len(data) // batch_size if isinstance(data, Samples) else len(data)


@dataclass(frozen=True)
class OnDevice:
    """Batches, each moved to a device when it is its turn."""

    batches: Batches
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield x.to(self.device), y.to(self.device)


def samples(context: Context, n: int) -> Batches:
    """``n`` training samples, drawn by the stage's seed, where the model is."""
    data = context.split.train
    if not isinstance(data, Samples):
        return OnDevice(data, context.device)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(context.seed))
    part = data.subset(order[:n])
    return OnDevice([(part.x, part.y)], context.device)


def first(batches: Batches, samples: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """The first samples of ``batches``, in batches of ``size``, to look at more often."""

    kept: list[tuple[Tensor, Tensor]] = []
    left = samples
    for x, y in batches:
        x, y = x[:left], y[:left]
        kept += zip(x.split(size), y.split(size), strict=True)
        left -= len(x)
        if left <= 0:
            break
    return kept


def density(model: nn.Module) -> float | None:
    """Share of nonzero weights over all that are pruned or shared; None if none is."""
    kept = elements = 0
    for target in find_targets(model):
        if current(target) is not None:
            mask = mask_of(target)
            elements += target.value.numel()
            kept += target.value.numel() if mask is None else int(mask.sum())
    return kept / elements if elements else None
