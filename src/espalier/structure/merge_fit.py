"""The layers of a merge, fitted to what the network gave where they stand now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from espalier.modes import evaluating
from espalier.structure.least_squares import LayerFit
from espalier.structure.merge_plans import Plan
from espalier.structure.traced import record

Original = tuple[nn.Module, fx.Graph]
"""The network before merges that are not exact, and its graph."""

KEPT_ELEMENTS = 1 << 26
"""Inputs and outputs of the layers that are fitted together, which are kept between rounds."""


@torch.no_grad()
def fit_plan(
    model: nn.Module, original: Original, plan: Plan, batches: Sequence[Any], seed: int
) -> dict[str, float]:
    """Fit the layers that ``plan`` made in ``model`` to what ``original`` gives there."""
    fits = {}
    for name, goal in plan.goals.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, _ConvNd)
        fits[name] = LayerFit(layer, goal.rectified, seed)
    with evaluating(model):
        seen = _Seen(model, original, plan, batches)
        for _ in range(max(f.rounds for f in fits.values())):
            for name, inputs, wanted in seen:
                fits[name].add(inputs, wanted)
            for found in fits.values():
                found.finish()
        return _errors(model, plan, seen)


class _Seen:
    """What :func:`_seen` gives, any number of times; kept in memory where it is not much.

    The layers of one plan do not feed each other, so that fitting them changes nothing in it.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.kept: list[tuple[str, Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        if self.kept is not None:
            yield from self.kept
            return
        kept, elements = [], 0
        for item in _seen(*self.arguments):
            elements += item[1].numel() + item[2].numel()
            if elements <= KEPT_ELEMENTS:
                kept.append(item)
            else:
                kept.clear()
            yield item
        if elements <= KEPT_ELEMENTS:
            self.kept = kept


def _seen(
    model: nn.Module, original: Original, plan: Plan, batches: Sequence[Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, its inputs in ``model``, the outputs that it should have), batch after batch."""
    network, graph = original
    nodes = {node.name: node for node in graph.nodes}
    device = next(model.parameters()).device
    for batch in batches:
        x = batch[0].to(device) if isinstance(batch, tuple | list) else batch.to(device)
        inputs: dict[str, Tensor] = {}
        handles = [_keep_input(model.get_submodule(name), name, inputs) for name in plan.goals]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
        given = record(network, x, {nodes[g.node] for g in plan.goals.values()}, graph)
        for name, goal in plan.goals.items():
            wanted = given[nodes[goal.node]][:, goal.first : goal.first + goal.count]
            yield name, inputs[name], wanted


def _keep_input(module: nn.Module, name: str, kept: dict[str, Tensor]) -> Any:
    def look(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kept[name] = arguments[0]

    return module.register_forward_pre_hook(look)


def _errors(model: nn.Module, plan: Plan, seen: _Seen) -> dict[str, float]:
    """||outputs - wanted||^2 over ||wanted - mean||^2 of each layer that ``plan`` made."""
    missed = dict.fromkeys(plan.goals, 0.0)
    moments = dict.fromkeys(plan.goals, (0, 0.0, 0.0))
    for name, inputs, wanted in seen:
        outputs = model.get_submodule(name)(inputs)
        if plan.goals[name].rectified:
            outputs = outputs.clamp_min(0)
        missed[name] += float((outputs - wanted).double().square().sum())
        flat = wanted.double().transpose(0, 1).flatten(1)
        count, total, squares = moments[name]
        moments[name] = (
            count + flat.shape[1],
            total + flat.sum(1),  # type: ignore[assignment]
            squares + float(flat.square().sum()),
        )
    errors = {}
    for name, (count, total, squares) in moments.items():
        spread = squares - float((total**2).sum()) / count  # type: ignore[attr-defined]
        errors[name] = missed[name] / spread if spread > 0 else 0.0
    return errors
