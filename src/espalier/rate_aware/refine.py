"""Symbols moved by one after training, wherever loss and file together become smaller.

With g the gradient of the loss in a weight and h the Fisher information there, a move by d changes
the loss by about g d + h d^2 / 2, and the bits by the difference of two code lengths. The moves
that save the most are made together, and kept only if

    J = loss + lambda * 8 * bytes of the file

really fell, both measured; otherwise a quarter as many are tried.

A file that is larger than its limit then gives way wherever a bit costs least: symbols move towards
zero by (max(g d, 0) + h d^2 / 2) / bits saved, for a quarter of what is too much at a time, with
the gradient taken anew in between. What g promises to gain is not counted: of many moves made
together it does not come true.
"""

from __future__ import annotations

import copy
import math
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
Cost = tuple[Tensor, Tensor, Tensor]
"""Of one tensor: what each weight's move to zero costs in loss, saves in bits, and the move."""

SHARE = 0.02
"""Of the nonzero symbols, so many may move in the first round."""
FEWEST = 4
"""When fewer moves than this do not help together, the search is over."""
SAMPLES = 1024
"""For the Fisher information."""
EXCESS = 0.25
"""Of the bytes that are too many, so many are to go at a time."""
LEAST = 1e-3
"""Of the limit: so many bytes are to go at least."""


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


def cheapest(costs: Sequence[Cost], bits: float) -> list[Tensor]:
    """The moves that cost the least for each bit, until they save ``bits``; the others are 0.

    Examples
    --------
    >>> cost, saved = torch.tensor([3.0, 1.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])
    >>> cheapest([(cost, saved, torch.ones(3))], 2.5)[0].tolist()
    [1.0, 1.0, 0.0]
    """
    saved = torch.cat([saves.flatten() for _, saves, _ in costs])
    each = torch.cat([(cost / saves).flatten() for cost, saves, _ in costs])
    each = torch.where(saved > 0, each, math.inf)
    order = each.argsort()[: int((saved > 0).sum())]
    enough = int((saved[order].cumsum(0) < bits).sum())
    chosen = torch.zeros_like(saved, dtype=torch.bool)
    chosen[order[: enough + 1]] = True
    parts = chosen.split([move.numel() for _, _, move in costs])
    return [
        torch.where(part.view_as(move), move, torch.zeros_like(move))
        for part, (_, _, move) in zip(parts, costs, strict=True)
    ]


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
        """Refine at ``lam``, then bring the file within ``limit``."""
        before, moved = self._measure(), self._rounds(lam, rounds)
        if limit is not None:
            moved += self._cut(limit)
        after = self._measure()
        return Refined((before[0], after[0]), (before[1], after[1]), moved)

    def _rounds(self, lam: float, rounds: int) -> int:
        """Move symbols for as long as J falls; how many moved."""
        loss, size = self._measure()
        nonzero = sum(int(grid.symbols().count_nonzero()) for grid in self.grids)
        count, moved = max(FEWEST, int(SHARE * nonzero)), 0
        for done in range(rounds):
            if self.progress:
                self.progress(done, rounds, f"refining, {size:,} bytes")
            chosen = largest(self._moves(lam), count)
            number = sum(int(move.count_nonzero()) for move in chosen)
            if not number:
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

    def _cut(self, limit: int) -> int:
        """Move symbols towards zero until the file is within ``limit``; how many moved."""
        first = size = self.size()
        moved = 0
        while size > limit:
            if self.progress:
                self.progress(first - size, first - limit, f"refining, {size:,} bytes")
            excess = size - limit
            chosen = cheapest(self._costs(), 8 * max(EXCESS * excess, LEAST * limit))
            number = sum(int(move.count_nonzero()) for move in chosen)
            if not number:
                raise InvalidArgument(
                    f"limit: {limit:,} bytes are asked for, and {size:,} are left without symbols"
                )
            for grid, move in zip(self.grids, chosen, strict=True):
                grid.move(move)
            moved, size = moved + number, self.size()
        return moved

    def _plain(self) -> tuple[nn.Module, list[nn.Parameter]]:
        """A copy with the weights as they are rounded, and its parameters for the grids."""
        plain = finalize(copy.deepcopy(self.model))
        named = {t.name: t.latent for t in find_targets(plain)}
        mine = [named[grid.target.name] for grid in self.grids]
        for parameter in mine:
            parameter.requires_grad_()
        return plain, mine

    def _gradients(self) -> list[Tensor]:
        """Of the mean loss, in the weights as they are rounded."""
        plain, mine = self._plain()
        gradients = [torch.zeros_like(parameter) for parameter in mine]
        for x, y in self.batches:
            value = self.loss(plain(x), y) * (len(x) / self.samples)
            for total, part in zip(gradients, torch.autograd.grad(value, mine), strict=True):
                total += part
        return gradients

    def _moves(self, lam: float) -> list[Move]:
        found: list[Move] = []
        for grid, gradient, fisher in zip(self.grids, self._gradients(), self.fisher, strict=True):
            symbols = grid.symbols()
            grid.lengths.refresh(symbols)
            step, bits = float(grid.held.step.detach()), grid.lengths.each
            gain, move = best_moves(symbols, step, gradient, fisher, bits, lam)
            if grid.held.mask is not None:
                gain = gain * grid.held.mask
            found.append((gain, move))
        return found

    def _costs(self) -> list[Cost]:
        found: list[Cost] = []
        for grid, gradient, fisher in zip(self.grids, self._gradients(), self.fisher, strict=True):
            symbols = grid.symbols()
            grid.lengths.refresh(symbols)
            step, move = float(grid.held.step.detach()), -symbols.sign()
            saved = grid.lengths.each(symbols) - grid.lengths.each(symbols + move)
            d = move * step
            cost = (gradient * d).clamp_min(0) + 0.5 * fisher * d * d
            found.append((cost, torch.where(move != 0, saved, 0.0).clamp_min(0), move))
        return found

    @torch.no_grad()
    def _measure(self) -> tuple[float, int]:
        """Mean loss over the batches, and bytes of the file."""
        with evaluating(self.model):
            total = sum(float(self.loss(self.model(x), y)) * len(x) for x, y in self.batches)
        return total / self.samples, self.size()
