"""Symbols moved by one after training, wherever loss and file together become smaller.

With g the gradient of the loss in a weight and h the Fisher information there, a move by d changes
the loss by about g d + h d^2 / 2, and the bits by the difference of two code lengths. The moves
that save the most are made together, and kept only if

    J = loss + lambda * 8 * bytes of the file

really fell, both measured; otherwise a quarter as many are tried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.parametrization import finalize
from espalier.progress import Progress
from espalier.pruning.fisher import diagonal_fisher
from espalier.rate_aware.grid import GridInTraining
from espalier.targets import find_targets

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]
Move = tuple[Tensor, Tensor]
"""Of one tensor: what each weight gains by its best move, and the move: -1, 0 or 1."""

SHARE = 0.02
"""Of the nonzero symbols, so many may move in the first round."""
FEWEST = 4
"""When fewer moves than this do not help together, the search is over."""
SAMPLES = 1024
"""For the Fisher information."""
RISE = 1.25
MOST_RISES = 60
"""How lambda rises until the file is within its limit, and how often."""


@dataclass(frozen=True)
class Refined:
    """What refining did: loss and bytes before and after, and how many symbols moved."""

    loss: tuple[float, float]
    file_bytes: tuple[int, int]
    moved: int


def best_moves(
    symbols: Tensor,
    step: float,
    gradient: Tensor,
    fisher: Tensor,
    bits: Callable[[Tensor], Tensor],
    lam: float,
) -> Move:
    """For each symbol the move by one that gains the most, in the unit of the loss.

    Parameters
    ----------
    symbols : int32 Tensor
    step : float
    gradient, fisher : Tensor of the same shape
        Of the loss in the weight; the mean over samples of the squared gradient.
    bits : callable
        The bits of each symbol of such a tensor.
    lam : float
        What a bit costs.

    Examples
    --------
    >>> q = torch.tensor([3, 0], dtype=torch.int32)
    >>> gain, move = best_moves(q, 1.0, torch.zeros(2), torch.ones(2), lambda q: 9.0 * q.abs(), 1)
    >>> move.tolist(), gain.tolist()
    ([-1, 0], [8.5, 0.0])
    """
    now = bits(symbols)
    gain, move = torch.zeros_like(gradient), torch.zeros_like(symbols)
    for way in (-1, 1):
        d = way * step
        saved = lam * (now - bits(symbols + way)) - gradient * d - 0.5 * fisher * d * d
        better = saved > gain
        gain = torch.where(better, saved, gain)
        move = torch.where(better, torch.full_like(move, way), move)
    return gain, move


def largest(moves: Sequence[Move], count: int) -> list[Tensor]:
    """The ``count`` moves with the largest gains over all tensors; the others are 0."""
    gains = torch.cat([gain.flatten() for gain, _ in moves])
    count = min(count, int((gains > 0).sum()))
    if not count:
        return [torch.zeros_like(move) for _, move in moves]
    least = torch.topk(gains, count).values[-1]
    return [torch.where(gain >= least, move, torch.zeros_like(move)) for gain, move in moves]


class Refiner:
    """The search, on a model whose grids are in training.

    Parameters
    ----------
    model : nn.Module
    grids : sequence of GridInTraining
    size : callable
        Bytes of the file as it is now.
    batches : sequence of (inputs, targets)
    loss : callable
    progress : callable, optional
    """

    def __init__(
        self,
        model: nn.Module,
        grids: Sequence[GridInTraining],
        size: Callable[[], int],
        batches: Batches,
        loss: Loss,
        progress: Progress | None = None,
    ) -> None:
        if not batches:
            raise InvalidArgument("no batches were given to refine the symbols on")
        self.model, self.grids, self.size = model, grids, size
        self.batches, self.loss, self.progress = batches, loss, progress
        self.samples = sum(len(x) for x, _ in batches)
        few = islice(batches, max(1, SAMPLES // max(1, len(batches[0][0]))))
        plain, mine = self._plain()
        found = diagonal_fisher(plain, few, loss)
        self.fisher = [found[parameter] for parameter in mine]

    def run(self, lam: float, limit: int | None, rounds: int) -> Refined:
        """Refine at ``lam``, and at higher ones until the file is within ``limit``."""
        before, moved = self._measure(), self._rounds(lam, rounds)
        after = self._measure()
        for _ in range(MOST_RISES):
            if limit is None or after[1] <= limit:
                break
            lam *= RISE
            moved += self._rounds(lam, rounds, limit)
            after = self._measure()
        return Refined((before[0], after[0]), (before[1], after[1]), moved)

    def _rounds(self, lam: float, rounds: int, limit: int = 0) -> int:
        """Move symbols for as long as J falls and the file is above ``limit``; how many moved."""
        loss, size = self._measure()
        nonzero = sum(int(grid.symbols().count_nonzero()) for grid in self.grids)
        count, moved = max(FEWEST, int(SHARE * nonzero)), 0
        for done in range(rounds):
            if self.progress:
                self.progress(done, rounds, f"refining, {size:,} bytes")
            chosen = largest(self._moves(lam), count)
            number = sum(int(move.count_nonzero()) for move in chosen)
            if not number or size <= limit:
                break
            before = [grid.target.latent.detach().clone() for grid in self.grids]
            for grid, move in zip(self.grids, chosen, strict=True):
                grid.move(move)
            tried = self._measure()
            if tried[0] + 8 * lam * tried[1] < loss + 8 * lam * size:
                (loss, size), moved = tried, moved + number
                continue
            with torch.no_grad():
                for grid, kept in zip(self.grids, before, strict=True):
                    grid.target.latent.copy_(kept)
            count = min(count, number) // 4
            if count < FEWEST:
                break
        return moved

    def _plain(self) -> tuple[nn.Module, list[nn.Parameter]]:
        """A copy with the weights as they are rounded, and its parameters for the grids."""
        plain = finalize(copy.deepcopy(self.model))
        named = {t.name: t.latent for t in find_targets(plain)}
        mine = [named[grid.target.name] for grid in self.grids]
        for parameter in mine:
            parameter.requires_grad_()
        return plain, mine

    def _moves(self, lam: float) -> list[Move]:
        plain, mine = self._plain()
        gradients = [torch.zeros_like(parameter) for parameter in mine]
        for x, y in self.batches:
            value = self.loss(plain(x), y) * (len(x) / self.samples)
            for total, part in zip(gradients, torch.autograd.grad(value, mine), strict=True):
                total += part
        found: list[Move] = []
        for grid, gradient, fisher in zip(self.grids, gradients, self.fisher, strict=True):
            symbols = grid.symbols()
            grid.lengths.refresh(symbols)
            step, bits = float(grid.held.step.detach()), grid.lengths.each
            gain, move = best_moves(symbols, step, gradient, fisher, bits, lam)
            if grid.held.mask is not None:
                gain = gain * grid.held.mask
            found.append((gain, move))
        return found

    @torch.no_grad()
    def _measure(self) -> tuple[float, int]:
        """Mean loss over the batches, and bytes of the file."""
        with evaluating(self.model):
            total = sum(float(self.loss(self.model(x), y)) * len(x) for x, y in self.batches)
        return total / self.samples, self.size()
