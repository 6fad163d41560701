"""Which filters can only go together, and which channels go with them."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from espalier.errors import InvalidArgument, MissingDependency, first_line
from espalier.modes import evaluating
from espalier.structure.channels import depthwise, to_ranges, widths
from espalier.structure.edits.keep_channels import KeepChannels
from espalier.targets import find_targets


@dataclass
class Side:
    """Channels of one side of a layer: ``channels[j]`` goes with filter ``filters[j]``."""

    channels: list[int]
    filters: list[int]


@dataclass
class FilterGroup:
    """Layers whose filters go together: filter i of one with filter i of every other.

    Attributes
    ----------
    layers : list of str
        The layers that have these filters; more than one where their outputs are added.
    filters : int
    blocks : int
        The same number has to go from each of so many equal blocks of filters (grouped
        convolutions), 1 without.
    inputs, outputs : dict of str to Side
        What goes with them, by layer.
    norms : dict of str to nn.Module
        For each of ``layers``, the batch norm right behind it, where there is one.
    obstacle : str
        Why no filter can be removed; empty if some can.
    """

    layers: list[str]
    filters: int
    blocks: int = 1
    inputs: dict[str, Side] = field(default_factory=dict)
    outputs: dict[str, Side] = field(default_factory=dict)
    norms: dict[str, nn.Module] = field(default_factory=dict)
    obstacle: str = ""


def filter_groups(model: nn.Module, example: Any) -> list[FilterGroup]:
    """All groups of a model, in the order of their first layers, by torch-pruning's graph.

    Parameters
    ----------
    model : nn.Module
    example : Tensor or tuple of Tensors
        Inputs that the model can be run on.

    Raises
    ------
    InvalidArgument
        The model cannot be traced on ``example``.
    MissingDependency
        torch-pruning is not installed.
    """
    graph = _dependencies(model, example)
    names = {module: name for name, module in model.named_modules()}
    obstacles = _tied_or_parametrized(model)
    groups: list[FilterGroup] = []
    seen: set[str] = set()
    for name, module in model.named_modules():
        if name in seen or module not in graph.module2node or not _has_filters(module):
            continue
        count = widths(module)[1]
        remove = graph.get_pruner_of_module(module).prune_out_channels
        items = graph.get_pruning_group(module, remove, list(range(count)))
        group = _group(name, count, items, graph, names)
        group.obstacle = group.obstacle or next(
            (f"{layer} {obstacles[layer]}" for layer in _members(group) if layer in obstacles), ""
        )
        seen.update(group.layers)
        groups.append(group)
    return groups


def _dependencies(model: nn.Module, example: Any) -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependency(
            "removing filters needs torch-pruning: pip install 'espalier[structure]'"
        ) from None
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(True)  # the graph is read off autograd's
    try:
        with (
            evaluating(model),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.enable_grad(),
        ):
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
    except Exception as error:
        what = first_line(error)
        raise InvalidArgument(f"the model cannot be run on the example inputs: {what}") from error
    finally:
        for parameter, grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(grad)
    return graph


def _has_filters(module: nn.Module) -> bool:
    if isinstance(module, _ConvNd):
        return not depthwise(module)
    return isinstance(module, nn.Linear)


def _tied_or_parametrized(model: nn.Module) -> dict[str, str]:
    """Layer -> why its weight cannot be cut."""
    found = {}
    for target in find_targets(model):
        for name in target.names:
            layer = name.rpartition(".")[0]
            if len(target.sites) > 1:
                found[layer] = "shares its weight with another layer"
            elif any(parametrize.is_parametrized(site.module) for site in target.sites):
                found[layer] = "is pruned or shared already; remove filters before that"
    return found


def _members(group: FilterGroup) -> list[str]:
    return [*group.inputs, *group.outputs]


def _group(
    name: str, count: int, items: Any, graph: Any, names: dict[nn.Module, str]
) -> FilterGroup:
    group = FilterGroup([], count)
    for item in items:
        node, module = item.dep.target, item.dep.target.module
        outwards = graph.is_out_channel_pruning_fn(item.dep.handler)
        if outwards and not node.outputs:
            group.obstacle = "its outputs are the network's"
        if isinstance(module, nn.Parameter):
            group.obstacle = "its outputs meet a parameter that is in no layer"
        if module not in names or not names[module]:
            continue
        side = Side([int(i) for i in item.idxs], [int(i) for i in item.root_idxs])
        layer = names[module]
        (group.outputs if outwards else group.inputs)[layer] = side
        _look_at(group, layer, module, outwards, side)
        if outwards and _has_filters(module):
            group.layers.append(layer)
            behind = [n.module for n in node.outputs if isinstance(n.module, _BatchNorm)]
            if len(node.outputs) == 1 and behind:
                group.norms[layer] = behind[0]
    return group


def _look_at(group: FilterGroup, layer: str, module: nn.Module, outwards: bool, side: Side) -> None:
    """Note what ``layer`` asks of the group: blocks, or that nothing is removed."""
    try:
        _, outputs = widths(module)
    except InvalidArgument as error:
        group.obstacle = group.obstacle or f"{layer}: {error}"
        return
    if outwards and _has_filters(module) and outputs != group.filters:
        group.obstacle = group.obstacle or (
            f"its outputs are added to those of {layer}, which has {outputs} filters and not "
            f"{group.filters}"
        )
    if isinstance(module, nn.GroupNorm):
        group.obstacle = group.obstacle or f"{layer} normalises groups of channels"
    if isinstance(module, _ConvNd) and module.groups > 1 and not depthwise(module):
        if isinstance(module, _ConvTransposeNd) or side.channels != side.filters:
            group.obstacle = group.obstacle or f"{layer} takes its channels in groups"
        group.blocks = lcm(group.blocks, module.groups)


def keep_channels(groups: list[tuple[FilterGroup, list[int]]], model: nn.Module) -> KeepChannels:
    """The edit that leaves each group the given filters, rising."""
    lost: dict[str, dict[str, set[int]]] = {}
    for group, kept in groups:
        gone = set(range(group.filters)) - set(kept)
        for key, sides in (("in", group.inputs), ("out", group.outputs)):
            for layer, side in sides.items():
                channels = {
                    c for c, f in zip(side.channels, side.filters, strict=True) if f in gone
                }
                lost.setdefault(layer, {}).setdefault(key, set()).update(channels)
    layers: dict[str, dict[str, object]] = {}
    for layer, module in model.named_modules():
        sides_lost = lost.get(layer)
        if not sides_lost:
            continue
        of = widths(module)
        entry: dict[str, object] = {"of": list(of)}
        for key, total in zip(("in", "out"), of, strict=True):
            gone = sides_lost.get(key, set())
            if gone:
                entry[key] = to_ranges([i for i in range(total) if i not in gone])
        if len(entry) > 1:
            layers[layer] = entry
    return KeepChannels(layers)
