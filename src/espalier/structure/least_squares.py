"""Linear layers fitted to outputs that they should give: normal equations, batch after batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from espalier.structure.operations import convolution_window

POSITIONS = 256
"""Positions of one sample that are looked at, drawn at random, where it has more."""
ELEMENTS = 1 << 24
"""Of all patches that are looked at together; bounds the memory."""
ROUNDS = 4
"""Times that a layer with a ReLU behind it is fitted."""
RIDGE = 1e-6
"""Of the mean variance of the inputs: what is added to each, against directions never seen."""


class NormalEquations:
    """min over W, b of the sum over rows of ||W a + b - t||^2 + ridge ||W||^2, for all t at once.

    Kept are the sums of a a', a t', a and t, in float64; memory does not grow with the rows.

    Parameters
    ----------
    inputs, outputs : int
        Sizes of a and t.

    Examples
    --------
    >>> rows = torch.tensor([[0.0], [1.0], [2.0]])
    >>> equations = NormalEquations(1, 1)
    >>> equations.add(rows, 3 * rows + 1)
    >>> [round(float(v), 4) for v in equations.solve()]
    [3.0, 1.0]
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.sum_inputs = torch.zeros(inputs, dtype=torch.float64)
        self.sum_targets = torch.zeros(outputs, dtype=torch.float64)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Take in rows (n, inputs) and what should come of them (n, outputs)."""
        a, t = rows.double().cpu(), targets.double().cpu()
        self.count += len(a)
        self.gram.addmm_(a.T, a)
        self.cross.addmm_(a.T, t)
        self.sum_inputs += a.sum(0)
        self.sum_targets += t.sum(0)

    def solve(self, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
        """``(W, b)``: (outputs, inputs) and (outputs,), float64."""
        mean_a, mean_t = self.sum_inputs / self.count, self.sum_targets / self.count
        covariance = self.gram / self.count - torch.outer(mean_a, mean_a)
        cross = self.cross / self.count - torch.outer(mean_a, mean_t)
        scale = covariance.diagonal().mean().clamp_min(1e-30)
        covariance.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            weight = torch.linalg.lstsq(covariance, cross, driver="gelsd").solution.T
        else:
            weight = torch.cholesky_solve(cross, factor).T
        return weight, mean_t - weight @ mean_a


def sample_positions(shape: torch.Size, seed: int) -> Tensor:
    """Positions of a feature map, (n, axes): all of them, or ``POSITIONS`` drawn at random."""
    count = shape.numel()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)[:POSITIONS]
    return torch.stack(torch.unravel_index(order.sort().values, shape), 1)


def patches(x: Tensor, layer: _ConvNd, positions: Tensor) -> Tensor:
    """What ``layer`` sees at ``positions``: (groups, N * n, inputs of a group * kernel)."""
    window = convolution_window(layer)
    pad = [p for padding in reversed(window.padding) for p in (padding, padding)]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, pad, mode=mode)
    axes = len(window.kernel)
    for i, (k, s, d) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)
    for i, d in enumerate(window.dilation):
        x = x.transpose(2 + axes + i, 0)[::d].transpose(2 + axes + i, 0)
    seen = _at(x, positions)
    # (N, channels, n, kernel...) -> (groups, N, n, channels of a group, kernel...)
    seen = seen.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2, *range(4, 4 + axes))
    return seen.flatten(3).flatten(1, 2)


def _at(maps: Tensor, positions: Tensor) -> Tensor:
    """(N, channels, ...) at ``positions`` of the axes behind: (N, channels, n, ...)."""
    index: list[Any] = [slice(None), slice(None), *positions.unbind(1)]
    return maps[tuple(index)]


def picked(outputs: Tensor, positions: Tensor, groups: int) -> Tensor:
    """Outputs (N, channels, ...) at ``positions``: (groups, N * n, channels of a group)."""
    values = _at(outputs, positions)
    return values.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


class LayerFit:
    """Finds the weights of a convolution for given inputs and the outputs that it should have.

    With a ReLU behind it, t = 0 asks only for W a + b <= 0. So after the first fit t is replaced,
    where it is 0, by min(W a + b, 0), and the layer fitted again, which lowers
    ||max(W a + b, 0) - t||^2 from round to round.

    Parameters
    ----------
    layer : convolution
        Gets the weights with :meth:`finish`.
    rectified : bool
        Whether a ReLU stands behind it.
    seed : int
    """

    def __init__(self, layer: _ConvNd, rectified: bool, seed: int) -> None:
        self.layer, self.rectified, self.seed = layer, rectified, seed
        self.rounds = ROUNDS if rectified else 1
        self.round = -1
        self._start()

    def _start(self) -> None:
        self.round += 1
        inputs = self.layer.weight[0].numel()
        outputs = self.layer.out_channels // self.layer.groups
        self.equations = [NormalEquations(inputs, outputs) for _ in range(self.layer.groups)]
        self.batches = 0

    def add(self, x: Tensor, targets: Tensor) -> None:
        """Take in one batch of the layer's inputs and of the outputs that are wanted."""
        positions = sample_positions(targets.shape[2:], self.seed * 1_000_003 + self.batches)
        self.batches += 1
        positions = positions.to(x.device)
        count = max(1, ELEMENTS // (len(positions) * self.layer.weight[0].numel()))
        for part, goal in zip(x.split(count), targets.split(count), strict=True):
            rows = patches(part, self.layer, positions)
            wanted = picked(goal, positions, self.layer.groups)
            if self.round:
                now = picked(self.layer(part), positions, self.layer.groups)
                wanted = torch.where(wanted > 0, wanted, now.clamp_max(0))
            for equations, a, t in zip(self.equations, rows, wanted, strict=True):
                equations.add(a, t)

    @torch.no_grad()
    def finish(self) -> None:
        """Give the layer the weights that fit best what it was shown."""
        found = [equations.solve() for equations in self.equations]
        weight, bias = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.layer.weight.copy_(weight.view_as(self.layer.weight))
        assert self.layer.bias is not None
        self.layer.bias.copy_(bias)
        self._start()


__all__ = ["LayerFit", "NormalEquations", "patches", "picked", "sample_positions"]
