"""What the filters of each group do on the user's samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.structure.graph import FilterGroup, Side

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class GroupStats:
    """Of the outputs of one group, as the layers behind it see them: after the activation.

    ``pooled``: mean over positions, (samples, filters). ``zeros``: share of zeros, (filters,).
    ``taylor``: mean over samples of abs(sum of output x gradient), (filters,); None unless asked.
    """

    pooled: Tensor
    zeros: Tensor
    taylor: Tensor | None


@dataclass
class _Probe:
    """What is seen of one group while batches run; all of one batch, then all batches."""

    side: Side
    filters: int
    pooled: list[Tensor] = field(default_factory=list)
    zeros: list[Tensor] = field(default_factory=list)
    taylor: list[Tensor] = field(default_factory=list)
    product: Tensor | None = None

    def of_filters(self, channels: Tensor, side: Side) -> Tensor:
        """(samples, channels) to (samples, filters): the mean over the channels of a filter."""
        index = torch.tensor(side.filters, device=channels.device)
        picked = channels[:, torch.tensor(side.channels, device=channels.device)]
        sums = picked.new_zeros(len(picked), self.filters).index_add_(1, index, picked)
        counts = torch.bincount(index, minlength=self.filters).clamp_min(1)
        return sums / counts


def collect(
    model: nn.Module,
    groups: list[FilterGroup],
    batches: Batches,
    loss: Loss | None = None,
    *,
    gradients: bool = False,
) -> list[GroupStats | None]:
    """Run ``batches`` through ``model``; None for a group that no layer takes its inputs from.

    The model is run in evaluation mode, and left in the mode that it was in.
    """
    loss = loss or nn.functional.cross_entropy
    probes = [_probe(group) for group in groups]
    seen = 0
    try:
        with evaluating(model), _watching(model, groups, probes, gradients):
            for x, y in batches:
                seen += len(x)
                with torch.set_grad_enabled(gradients):
                    outputs = model(x)
                    if gradients:
                        # Summed over samples: each sample's gradient is then its own.
                        (loss(outputs, y) * len(x)).backward(inputs=_leaves(model))
                for probe in probes:
                    if probe is not None and probe.product is not None:
                        probe.taylor.append(probe.product.abs())
                        probe.product = None
    finally:
        for parameter in model.parameters():
            parameter.grad = None if gradients else parameter.grad
    if not seen:
        raise InvalidArgument("no batches were given to score the filters on")
    return [None if probe is None else _stats(probe) for probe in probes]


def _leaves(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _probe(group: FilterGroup) -> _Probe | None:
    first = next(iter(group.inputs.values()), None)
    return None if first is None else _Probe(first, group.filters)


def _stats(probe: _Probe) -> GroupStats:
    return GroupStats(
        torch.cat(probe.pooled),
        torch.cat(probe.zeros).mean(0),
        torch.cat(probe.taylor).mean(0) if probe.taylor else None,
    )


@contextmanager
def _watching(
    model: nn.Module, groups: list[FilterGroup], probes: list[_Probe | None], gradients: bool
) -> Iterator[None]:
    """Look at what meets the layers behind each group: at the first, and for gradients at all."""
    handles = []
    for group, probe in zip(groups, probes, strict=True):
        if probe is None:
            continue
        for i, (layer, side) in enumerate(group.inputs.items()):
            if i and not gradients:
                break
            hook = _hook(probe, side, first=not i, gradients=gradients)
            handles.append(model.get_submodule(layer).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _positions(x: Tensor) -> Tensor:
    """(samples, channels, positions): of a convolution's input, or of a linear layer's."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def _hook(probe: _Probe, side: Side, *, first: bool, gradients: bool) -> Callable[..., None]:
    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear) and x.dim() > 2:
            x = x.movedim(-1, 1)
        seen = _positions(x.detach())
        if first:
            probe.pooled.append(probe.of_filters(seen.mean(2), side))
            probe.zeros.append(probe.of_filters((seen == 0).to(seen.dtype).mean(2), side))
        if gradients and x.requires_grad:

            def backward(gradient: Tensor) -> None:
                product = (seen * _positions(gradient.detach())).sum(2)
                found = probe.of_filters(product, side)
                counts = torch.bincount(torch.tensor(side.filters), minlength=probe.filters)
                found = found * counts.clamp_min(1).to(found)  # the sum over a filter's channels
                probe.product = found if probe.product is None else probe.product + found

            x.register_hook(backward)

    return look
