"""Dense convolutions whose weight is laid out once, with the activation behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.runtime.inference_layer import DENSE, InferenceLayer

PREPACKED = "prepacked"


@dataclass(frozen=True)
class Activation:
    """An element-wise function by the name that oneDNN has for it, with its numbers."""

    name: str
    function: Callable[[Tensor], Tensor]
    numbers: tuple[float, ...] = ()
    algorithm: str = ""

    @staticmethod
    def of(module: nn.Module) -> Activation | None:
        """That of a layer; None for one that cannot be computed along with a convolution."""
        made = _ACTIVATIONS.get(type(module))
        return made(module) if made else None


def _hardtanh(module: Any) -> Activation:
    low, high = float(module.min_val), float(module.max_val)
    return Activation("hardtanh", partial(F.hardtanh, min_val=low, max_val=high), (low, high))


RELU = Activation("relu", F.relu)
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda _: RELU,
    nn.ReLU6: _hardtanh,
    nn.Hardtanh: _hardtanh,
    nn.LeakyReLU: lambda m: Activation(
        "leaky_relu",
        partial(F.leaky_relu, negative_slope=m.negative_slope),
        (float(m.negative_slope),),
    ),
    nn.GELU: lambda m: Activation(
        "gelu", partial(F.gelu, approximate=m.approximate), algorithm=m.approximate
    ),
    nn.SiLU: lambda _: Activation("swish", F.silu),
    nn.Hardswish: lambda _: Activation("hardswish", F.hardswish),
    nn.Sigmoid: lambda _: Activation("sigmoid", torch.sigmoid),
    nn.Tanh: lambda _: Activation("tanh", torch.tanh),
}


class PrepackedConv(InferenceLayer):
    """``y = f(W * x + b)`` for images, with W in the order in which oneDNN reads it.

    PyTorch's own convolution puts the weight into that order at each call, which at batch 1 takes
    as long as computing with it. ``torch.compile`` does this too, where it is told that weights
    stay (``freezing``). Images come out with their channels innermost in memory, which is how the
    next one likes them; their shape is the same.
    """

    weights = "weights laid out for oneDNN"

    def __init__(self, layer: nn.Conv2d, shape: torch.Size) -> None:
        """``shape``: of an input, for which the order is chosen; any other is computed too."""
        weight = layer.weight.detach()
        super().__init__(weight.shape, layer.bias, weight.dtype)
        assert not isinstance(layer.padding, str)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.groups = layer.kernel_size, layer.groups
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.after: Activation | None = None
        self.choice = {1: PREPACKED}
        self.forms[PREPACKED] = self._ordered(weight, shape)
        self.forms[DENSE] = weight
        self._for = shape

    def _ordered(self, weight: Tensor, shape: torch.Size) -> Tensor:
        geometry = self.padding, self.stride, self.dilation, self.groups
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        return reorder(weight.contiguous().to_mkldnn(), *geometry, tuple(shape))

    @property
    def weight(self) -> Tensor:
        if DENSE in self.forms:
            dense: Tensor = self.forms[DENSE]
            return dense
        return self.forms[PREPACKED].to_dense().reshape(self.shape)

    def held(self) -> dict[int, int]:
        return {id(weight): weight.nbytes for weight in self.forms.values()}

    def drop_unused(self) -> None:
        wanted = {DENSE if form == DENSE else PREPACKED for form in self.choice.values()}
        self.forms = {form: weight for form, weight in self.forms.items() if form in wanted}

    def positions(self, x: Tensor) -> int:
        return self.places(x.shape)

    def places(self, shape: torch.Size) -> int:
        """Of an input of ``shape``."""
        return shape.numel() // max(1, self.in_channels)

    def compute(self, x: Tensor, form: str) -> Tensor:
        if x.dim() == 3:
            return self.compute(x[None], form)[0]
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InvalidArgument(
                f"input of shape {tuple(x.shape)} for a convolution of {self.in_channels} channels "
                "along 2 axes"
            )
        geometry = self.padding, self.stride, self.dilation, self.groups
        after = self.after
        if form == DENSE:
            padding, stride, dilation, groups = geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            return after.function(y) if after else y
        how = ("none", (), "") if after is None else (after.name, after.numbers, after.algorithm)
        compute: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
        return compute(x, self.forms[PREPACKED], self.bias, *geometry, *how)

    def __getstate__(self) -> dict[str, Any]:
        """Weights in oneDNN's order cannot be pickled, and another machine has another order."""
        return {**vars(self), "forms": {DENSE: self.weight}, "_held": tuple(self.forms)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        held = state.pop("_held")
        super().__setstate__(state)
        self.forms[PREPACKED] = self._ordered(self.forms[DENSE], self._for)
        self.forms = {form: self.forms[form] for form in held}

    def extra_repr(self) -> str:
        after = "" if self.after is None else f", {self.after.name}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}{after}"
        )


def obstacle(layer: nn.Module) -> str:
    """Why a layer cannot be a :class:`PrepackedConv`; empty if it can."""
    if type(layer) is not nn.Conv2d:
        return f"is a {type(layer).__name__}"
    if layer.weight.dtype != torch.float32:
        return f"it is {layer.weight.dtype}"
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return "its padding is given by name"
    if any((layer._forward_hooks, layer._forward_pre_hooks)):
        return "has hooks, which another layer would not have"
    return ""
