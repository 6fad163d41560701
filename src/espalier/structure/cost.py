"""Multiply-accumulates and parameters of a network, now and after an edit that is not made yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from espalier.modes import evaluating
from espalier.structure.channels import depthwise, from_ranges, widths
from espalier.structure.edits.keep_channels import KeepChannels


@dataclass(frozen=True)
class Layer:
    """What one layer costs: multiply-accumulates for a sample, and parameters of each kind.

    ``weights`` grow with inputs and outputs, ``others`` (biases, norms) with outputs alone.
    """

    of: tuple[int, int]
    macs: int
    weights: int
    others: int
    depthwise: bool = False


@dataclass(frozen=True)
class Cost:
    """``macs``: multiply-accumulates of convolutions and linear layers, one sample."""

    macs: int
    parameters: int
    layers: dict[str, Layer] = field(repr=False, compare=False, default_factory=dict)

    def after(self, edit: KeepChannels) -> Cost:
        """What the network will cost after ``edit``."""
        macs, parameters = float(self.macs), float(self.parameters)
        for name, kept in edit.layers.items():
            layer = self.layers[name]
            inputs, outputs = layer.of
            less_in = len(from_ranges(str(kept["in"]), inputs)) / inputs if "in" in kept else 1.0
            less_out = len(from_ranges(str(kept["out"]), outputs)) / outputs if "out" in kept else 1
            both = less_out if layer.depthwise else less_in * less_out
            macs -= layer.macs * (1 - both)
            parameters -= layer.weights * (1 - both) + layer.others * (1 - less_out)
        return Cost(round(macs), round(parameters))


@torch.no_grad()
def cost(model: nn.Module, example: Any) -> Cost:
    """Run ``model`` once, in evaluation mode, and count."""
    layers: dict[str, Layer] = {}
    handles = [
        module.register_forward_hook(_hook(name, layers)) for name, module in model.named_modules()
    ]
    try:
        with evaluating(model):
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(sum(layer.macs for layer in layers.values()), parameters, layers)


def _hook(name: str, layers: dict[str, Layer]) -> Any:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            return
        try:
            of = widths(module)
        except ValueError:
            return
        own = sum(p.numel() for p in module.parameters(recurse=False))
        # Counted from the end, since an example may come without a batch axis.
        if isinstance(module, _ConvTransposeNd):
            positions = inputs[0].shape[-len(module.kernel_size) :].numel()
        elif isinstance(module, _ConvNd):
            positions = output.shape[-len(module.kernel_size) :].numel()
        elif isinstance(module, nn.Linear):
            positions = output.shape[1:-1].numel()
        else:
            layers[name] = Layer(of, 0, 0, own)
            return
        macs = weight.numel() * positions + (layers[name].macs if name in layers else 0)
        others = own - weight.numel()
        layers[name] = Layer(of, macs, weight.numel(), others, depthwise(module))

    return look
