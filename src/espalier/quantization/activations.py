"""Ranges of what enters a layer, seen in a few batches, and the grids for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.grids.calibration import Range
from espalier.modes import evaluating
from espalier.options import Lookup, check_fixed_bits
from espalier.quantized_inputs import InputGrid, first_input, remove_input_grids, set_input_grids
from espalier.targets import unwrap

SEEN = 1 << 15
"""Values of each batch that are kept, evenly spaced, beside its least and its largest."""
OPTIONS = {"symmetric", "power_of_two", "calibration", "percentile"}


@dataclass
class Seen:
    """Of one layer's inputs: some values, and how far they reach."""

    values: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        flat = x.detach().flatten()
        if flat.numel():
            ends = torch.stack(flat.aminmax())
            self.values.append(torch.cat([flat[:: -(-flat.numel() // SEEN)], ends]).float().cpu())


def input_ranges(
    model: nn.Module,
    bits: int | Mapping[str, int | None],
    weights: list[str],
    options: Mapping[str, Any],
) -> dict[str, Range]:
    """The numbers that the inputs of each layer shall have, by the layer's name.

    Parameters
    ----------
    model : nn.Module
    bits : int or mapping
        By ``"*"``, by kind and by name pattern of the layers.
    weights : list of str
        Names of the weights that are quantized.
    options : mapping
        As of :func:`espalier.quantize`.
    """
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise InvalidArgument(
            f"activation_options: takes {', '.join(sorted(OPTIONS))}, not {', '.join(unknown)}"
        )
    modules = dict(unwrap(model).named_modules())
    layers = [name.rpartition(".")[0] for name in weights]
    layers = [name for name in layers if isinstance(modules[name], _LAYERS)]
    widths = Lookup(bits, "activations", partial(check_fixed_bits, what="activations")).resolve(
        [((name, f"{name}.weight"), _kind(modules[name])) for name in layers]
    )
    return {n: range_of(b, options) for n, b in zip(layers, widths, strict=True) if b is not None}


@torch.no_grad()
def calibrate_inputs(
    model: nn.Module, ranges: Mapping[str, Range], batches: list[Any]
) -> dict[str, InputGrid]:
    """Quantize what enters these layers, as ``batches`` show it; returns the grids.

    Any quantizers of inputs that were there before go.
    """
    remove_input_grids(model)
    seen = _look(model, list(ranges), batches)
    grids = {name: grid_of(ranges[name], found) for name, found in seen.items()}
    set_input_grids(model, grids)
    return grids


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@torch.no_grad()
def round_biases(model: nn.Module, grids: Mapping[str, InputGrid]) -> None:
    """Round the biases of layers whose inputs are on these grids, as an integer runtime does.

    There a bias is added to sums of products of numbers: whole numbers, at the scale of the input
    times that of the weight.
    """
    modules = dict(unwrap(model).named_modules())
    for name, grid in grids.items():
        layer = modules[name]
        held = layer.parametrizations.weight[0]
        bias, scales = layer.bias, getattr(held, "scales", None)
        if not isinstance(bias, nn.Parameter) or not isinstance(scales, Tensor):
            continue
        if scales.numel() in (1, bias.numel()):
            steps = scales.flatten().float() * grid.scale
            bias.copy_((bias / steps).round() * steps)


def _kind(module: nn.Module) -> str:
    return "linear" if isinstance(module, nn.Linear) else "conv"


def range_of(bits: int, options: Mapping[str, Any]) -> Range:
    """The numbers of activations of so many bits, and how their scale is found."""
    how: dict[str, Any] = {"symmetric": False} | dict(options)
    half = 1 << (bits - 1)
    low, high = (1 - half, half - 1) if how["symmetric"] else (0, 2 * half - 1)
    return Range(low, high, **how)


def _look(model: nn.Module, layers: list[str], batches: list[Any]) -> dict[str, Seen]:
    """What enters the layers as the network runs."""
    plain = unwrap(model)
    seen = {name: Seen() for name in layers}

    def look(name: str) -> Any:
        return lambda _module, inputs, named: seen[name].add(first_input(inputs, named))

    handles = [
        plain.get_submodule(n).register_forward_pre_hook(look(n), with_kwargs=True) for n in layers
    ]
    try:
        with evaluating(model):
            for batch in batches:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, found in seen.items():
        if not found.values:
            raise InvalidArgument(f"activations: nothing enters {name} in these batches")
    return seen


def grid_of(wanted: Range, seen: Seen) -> InputGrid:
    values = torch.cat(seen.values).double().numpy()[None]
    scales, zeros = wanted.fit(values, np.ones_like(values, np.bool_))
    return InputGrid(float(scales[0, 0]), int(zeros[0, 0]), wanted.low, wanted.high)
