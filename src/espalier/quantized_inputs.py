"""Activations on a grid: what enters a layer, rounded as an 8-bit runtime will round it.

A layer whose inputs are quantized has a submodule ``input_quantizer`` and a hook that calls it, so
that they go along with ``deepcopy`` and ``state_dict``. A file holds them in its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import FormatError, InvalidArgument
from espalier.targets import unwrap

INPUT_QUANTIZER = "input_quantizer"
"""Name of the submodule."""
INPUTS_KEY = "espalier.inputs"
"""Where a file's metadata hold them: {layer: {"scale", "zero", "low", "high"}}."""


@dataclass(frozen=True)
class InputGrid:
    """What a layer's inputs are rounded to: (number - zero) * scale, for whole numbers.

    number = clip(round(x / scale) + zero, low, high), ties to even: ONNX' ``QuantizeLinear``.

    Attributes
    ----------
    scale : float
        Exactly a float32, above 0.
    zero, low, high : int
        0 to 2^bits - 1 where affine (uint8 for 8 bits), -(2^(bits-1) - 1) to 2^(bits-1) - 1 and
        zero 0 where symmetric (int8).
    """

    scale: float
    zero: int
    low: int
    high: int

    def __post_init__(self) -> None:
        whole = all(type(n) is int for n in (self.zero, self.low, self.high))
        if not whole or not -(1 << 16) <= self.low <= self.zero <= self.high <= 1 << 16:
            raise InvalidArgument(f"no grid: zero {self.zero} in {self.low} to {self.high}")
        if not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise InvalidArgument(f"a scale must be finite and above 0, not {self.scale!r}")

    @property
    def bits(self) -> int:
        """Of an integer that holds the numbers."""
        return (self.high - self.low).bit_length()

    @property
    def signed(self) -> bool:
        """Whether there are numbers below 0."""
        return self.low < 0


class InputQuantizer(nn.Module):
    """Round to an :class:`InputGrid`; in training the gradient goes straight through within it."""

    def __init__(self, grid: InputGrid) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        numbers = [grid.zero, grid.low, grid.high]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int32))

    scale: Tensor
    numbers: Tensor

    @property
    def grid(self) -> InputGrid:
        """As plain numbers."""
        zero, low, high = self.numbers.tolist()
        return InputGrid(float(self.scale), zero, low, high)

    def forward(self, x: Tensor) -> Tensor:
        zero, low, high = (n.to(torch.float32) for n in self.numbers)
        scale = self.scale.to(torch.float32)
        numbers = x.detach().to(torch.float32) / scale
        numbers = torch.minimum(torch.maximum(numbers.round() + zero, low), high)
        rounded = ((numbers - zero) * scale).to(x.dtype)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return rounded
        inside = (x >= (low - zero) * scale) & (x <= (high - zero) * scale)
        return rounded + torch.where(inside, x - x.detach(), x.new_zeros(()))


def first_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What enters a linear layer or a convolution, by place or by name."""
    return inputs[0] if inputs else named["input"]


def _round_inputs(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The hook. A module's function, so that copies of the layer call their own quantizer."""
    quantizer = getattr(layer, INPUT_QUANTIZER, None)
    if quantizer is None:
        return inputs, named
    return (quantizer(first_input(inputs, named)), *inputs[1:]), {}


def input_grids(model: nn.Module) -> dict[str, InputGrid]:
    """The grid of each layer whose inputs are quantized, by the layer's name."""
    return {
        name: module.input_quantizer.grid
        for name, module in unwrap(model).named_modules()
        if isinstance(getattr(module, INPUT_QUANTIZER, None), InputQuantizer)
    }


def set_input_grids(model: nn.Module, grids: Mapping[str, InputGrid]) -> None:
    """Quantize the inputs of these layers, and of no others.

    Raises
    ------
    InvalidArgument
        The model has no such layer; it is then as it was.
    """
    check_layers(model, grids)
    modules = dict(unwrap(model).named_modules())
    remove_input_grids(model)
    for name, grid in grids.items():
        layer = modules[name]
        device = next((p.device for p in layer.parameters()), None)
        layer.add_module(INPUT_QUANTIZER, InputQuantizer(grid).to(device))
        layer.register_forward_pre_hook(_round_inputs, with_kwargs=True)


def check_layers(model: nn.Module, grids: Mapping[str, InputGrid]) -> None:
    """InvalidArgument unless ``model`` has the layers that these grids are for."""
    modules = dict(unwrap(model).named_modules())
    missing = [name for name in grids if name not in modules]
    if missing:
        raise InvalidArgument(f"inputs of {missing[0]} are quantized; the model has no such layer")


def remove_input_grids(model: nn.Module) -> None:
    """Leave the inputs of all layers as they are."""
    for layer in unwrap(model).modules():
        if isinstance(getattr(layer, INPUT_QUANTIZER, None), InputQuantizer):
            del layer._modules[INPUT_QUANTIZER]
            hooks = layer._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _round_inputs]:
                del hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)


def is_input_quantizer(key: str) -> bool:
    """Whether a key of a ``state_dict`` is of what quantizes inputs."""
    return key.split(".")[-2:-1] == [INPUT_QUANTIZER]


def grids_in(state_dict: Mapping[str, Any]) -> dict[str, InputGrid]:
    """The input grids that a ``state_dict`` holds, by layer."""
    found = {}
    for key, scale in state_dict.items():
        if is_input_quantizer(key) and key.endswith(".scale"):
            head = key.removesuffix(".scale")
            zero, low, high = state_dict[f"{head}.numbers"].tolist()
            layer = head.rpartition(".")[0] if "." in head else ""
            found[layer] = InputGrid(float(scale), zero, low, high)
    return found


def grids_to_json(grids: Mapping[str, InputGrid]) -> dict[str, Any]:
    """Plain data for a file's metadata."""
    return {name: asdict(grid) for name, grid in grids.items()}


def grids_from_json(plain: Any) -> dict[str, InputGrid]:
    """The inverse of :func:`grids_to_json`; FormatError where it is none."""
    try:
        return {str(name): InputGrid(**fields) for name, fields in dict(plain).items()}
    except (InvalidArgument, TypeError, ValueError) as error:
        raise FormatError(f"metadata: {INPUTS_KEY!r} cannot be read: {error}") from None
