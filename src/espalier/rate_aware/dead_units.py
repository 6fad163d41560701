"""Units that nothing depends on any more, taken out while the others train.

A filter is dead where every weight that reads it is zero, or where all that makes it is zero, and
zero is what its activation makes of that. The rate brings this about by itself: where the weights
around are zero, one more costs more (:mod:`espalier.rate_aware.lengths`), so that whole rows and
columns go. A penalty on the norms of rows and columns pulls harder (Wen et al. 2016, arXiv
1608.03665): ``groups`` of :class:`espalier.RateAware`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.modes import evaluating
from espalier.parametrization import finalize, release, set_grid
from espalier.rate_aware.grid import GridInTraining
from espalier.rate_aware.lengths import CodeLengths
from espalier.structure.channels import cut, widths
from espalier.structure.edit import perform
from espalier.structure.edits.keep_channels import KeepChannels
from espalier.structure.filters import PrunedFilters
from espalier.structure.graph import FilterGroup, Side, filter_groups, keep_channels
from espalier.targets import find_targets, unwrap

SAME = 1e-4
"""Outputs that differ by no more, relative to the largest, are the same."""


@dataclass(frozen=True)
class _Plan:
    """Channels of each layer in a new order, dead ones last; and the edit that cuts these off.

    Sorted, so that what is kept is written as one range.
    """

    orders: dict[str, tuple[list[int] | None, list[int] | None]]
    edit: KeepChannels

    def carry_out(self, plain: nn.Module) -> None:
        """Change a model without parametrizations."""
        for layer, (inputs, outputs) in self.orders.items():
            cut(plain.get_submodule(layer), inputs, outputs)
        if self.edit.layers:
            perform(plain, [self.edit])


@torch.no_grad()
def remove_dead_units(
    model: nn.Module, grids: Sequence[GridInTraining], example: Any
) -> tuple[PrunedFilters, ...]:
    """Cut dead filters out of ``model``, whose grids go on with what is left.

    Parameters
    ----------
    model : nn.Module
        Changed in place; its parameters are new.
    grids : sequence of GridInTraining
        All that is parametrized in it.
    example : Tensor or tuple of Tensors
        Inputs to trace the model with, and to see that its outputs stay the same.
    """
    model = unwrap(model)
    rounded = finalize(copy.deepcopy(model))
    groups = [g for g in filter_groups(rounded, example) if not g.obstacle and g.blocks == 1]
    for zeros_count in (True, False):
        alive = [_alive(rounded, group, zeros_count) for group in groups]
        plan = _plan(rounded, groups, alive)
        if _same(rounded, plan, example):
            break
    masks = _masks(model, grids, plan)
    for grid in grids:
        latent = grid.target.latent.detach().clone()
        release(grid.target)
        grid.target.latent.copy_(latent)
    plan.carry_out(model)
    targets = {target.name: target for target in find_targets(model)}
    for grid in grids:
        grid.target = targets[grid.target.name]
        grid.held.mask = masks.get(grid.target.name)
        set_grid(grid.target, grid.held)
        if grid.held.unit is not None:
            grid.fix()
        grid.lengths = CodeLengths(tuple(grid.target.value.shape))
        grid.lengths.refresh(grid.symbols())
    return tuple(
        PrunedFilters(tuple(group.layers), group.filters, len(kept))
        for group, kept in zip(groups, alive, strict=True)
        if len(kept) < group.filters
    )


def _alive(plain: nn.Module, group: FilterGroup, zeros_count: bool) -> list[int]:
    """The filters that are used and, if ``zeros_count``, make anything; at least one."""
    used = torch.zeros(group.filters, dtype=torch.bool)
    readers = 0
    for layer, side in group.inputs.items():
        weight = getattr(plain.get_submodule(layer), "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:
            readers += 1
            # Of a transposed convolution the inputs come first.
            dim = 0 if isinstance(plain.get_submodule(layer), _Transposed) else 1
            nonzero = (weight != 0).movedim(dim, 0).flatten(1).any(1).cpu()
            used[side.filters] |= nonzero[side.channels]
    alive = used if readers else torch.ones_like(used)
    if zeros_count:
        made = torch.zeros_like(alive)
        for layer in group.layers:
            module = plain.get_submodule(layer)
            makers = [module, group.norms.get(layer)]
            dim = 1 if isinstance(module, _Transposed) else 0
            weight = module.weight
            assert isinstance(weight, Tensor)
            made |= (weight != 0).movedim(dim, 0).flatten(1).any(1).cpu()
            for maker in makers:
                bias = getattr(maker, "bias", None)
                if isinstance(bias, Tensor):
                    made |= (bias != 0).cpu()
        alive = alive & made
    return [int(i) for i in alive.nonzero()[:, 0]] or [0]


_Transposed = nn.modules.conv._ConvTransposeNd


def _plan(plain: nn.Module, groups: list[FilterGroup], alive: list[list[int]]) -> _Plan:
    orders: dict[str, list[list[int] | None]] = {}
    for group, kept in zip(groups, alive, strict=True):
        if len(kept) == group.filters:
            continue
        order = kept + sorted(set(range(group.filters)) - set(kept))
        for place, sides in enumerate((group.inputs, group.outputs)):
            for layer, side in sides.items():
                own = orders.setdefault(layer, [None, None])
                total = widths(plain.get_submodule(layer))[place]
                own[place] = _reordered(own[place] or list(range(total)), side, order)
    cuts = [(group, list(range(len(kept)))) for group, kept in zip(groups, alive, strict=True)]
    return _Plan({k: (a, b) for k, (a, b) in orders.items()}, keep_channels(cuts, plain))


def _reordered(channels: list[int], side: Side, order: list[int]) -> list[int]:
    """``channels`` with those of filter ``order[i]`` where those of filter i were."""
    of: dict[int, list[int]] = {}
    for channel, filter_ in zip(side.channels, side.filters, strict=True):
        of.setdefault(filter_, []).append(channel)
    moved = list(channels)
    for i, filter_ in enumerate(order):
        for to, source in zip(of.get(i, []), of.get(filter_, []), strict=True):
            moved[to] = channels[source]
    return moved


def _same(plain: nn.Module, plan: _Plan, example: Any) -> bool:
    """Whether the network computes on ``example`` what it did."""
    changed = copy.deepcopy(plain)
    plan.carry_out(changed)
    inputs = example if isinstance(example, tuple) else (example,)
    with evaluating(plain, changed):
        before, after = plain(*inputs), changed(*inputs)
    return bool((before - after).abs().max() <= SAME * before.abs().max())


def _masks(model: nn.Module, grids: Sequence[GridInTraining], plan: _Plan) -> dict[str, Tensor]:
    """The masks of pruned weights after the cut."""
    masks = {grid.target.name: grid.held.mask for grid in grids if grid.held.mask is not None}
    if not masks:
        return {}
    twin = finalize(copy.deepcopy(model))
    for target in find_targets(twin):
        if target.name in masks:
            target.latent.copy_(masks[target.name])
    plan.carry_out(twin)
    return {t.name: t.value != 0 for t in find_targets(twin) if t.name in masks}
