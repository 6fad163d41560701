"""Which channels are kept, written as ranges; and layers cut down to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from espalier.errors import InvalidArgument


def to_ranges(kept: list[int]) -> str:
    """Rising indices as text.

    Examples
    --------
    >>> to_ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for i in kept:
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


def from_ranges(text: str, count: int) -> list[int]:
    """The inverse of :func:`to_ranges`; InvalidArgument unless they rise within ``count``.

    Examples
    --------
    >>> from_ranges("0-2,5", 8)
    [0, 1, 2, 5]
    """
    kept: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise InvalidArgument(f"channels {text[:40]!r} are no ranges like '0-2,5'")
        a, b = int(first), int(last or first)
        if not (len(kept) == 0 or a > kept[-1]) or b < a or b >= count:
            raise InvalidArgument(f"channels {text[:40]!r} do not rise within 0 and {count - 1}")
        kept.extend(range(a, b + 1))
    return kept


def widths(module: nn.Module) -> tuple[int, int]:
    """Channels in and out of a layer that :func:`cut` knows; InvalidArgument for another."""
    match module:
        case _ConvNd():
            return module.in_channels, module.out_channels
        case nn.Linear():
            return module.in_features, module.out_features
        case _BatchNorm() | nn.GroupNorm() | nn.PReLU():
            count = module.num_parameters if isinstance(module, nn.PReLU) else _features(module)
            return count, count
    raise InvalidArgument(f"channels of a {type(module).__name__} cannot be removed")


def depthwise(module: nn.Module) -> bool:
    """Whether each output of a convolution has one input, and each input one output."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == (
        module.out_channels
    )


def _features(norm: _BatchNorm | nn.GroupNorm) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


@torch.no_grad()
def cut(module: nn.Module, inputs: list[int] | None, outputs: list[int] | None) -> None:
    """Leave ``module`` these inputs and outputs (None: all), in place."""
    match module:
        case _ConvNd():
            _cut_convolution(module, inputs, outputs)
        case nn.Linear():
            if outputs is not None:
                _keep(module, ("weight", "bias"), outputs)
                module.out_features = len(outputs)
            if inputs is not None:
                _keep(module, ("weight",), inputs, dim=1)
                module.in_features = len(inputs)
        case _BatchNorm():
            assert outputs is not None
            _keep(module, ("weight", "bias", "running_mean", "running_var"), outputs)
            module.num_features = len(outputs)
        case nn.PReLU():
            assert outputs is not None
            _keep(module, ("weight",), outputs)
            module.num_parameters = len(outputs)
        case _:
            raise InvalidArgument(f"channels of a {type(module).__name__} cannot be removed")


def _cut_convolution(module: _ConvNd, inputs: list[int] | None, outputs: list[int] | None) -> None:
    """A block of a grouped convolution loses as many channels as every other one."""
    groups = module.groups
    out_dim, in_dim = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
    if depthwise(module):
        kept = outputs if outputs is not None else inputs
        assert kept is not None
        _keep(module, ("weight", "bias"), kept)
        module.in_channels = module.out_channels = module.groups = len(kept)
        return
    if groups > 1 and out_dim:
        raise InvalidArgument("channels of a grouped transposed convolution cannot be removed")
    if outputs is not None:
        _keep(module, ("weight",), outputs, dim=out_dim)
        _keep(module, ("bias",), outputs)
    if inputs is not None and groups == 1:
        _keep(module, ("weight",), inputs, dim=in_dim)
    elif inputs is not None:
        _cut_groups(module, inputs)
    module.out_channels = module.out_channels if outputs is None else len(outputs)
    module.in_channels = module.in_channels if inputs is None else len(inputs)


def _cut_groups(module: _ConvNd, inputs: list[int]) -> None:
    """Keep ``inputs`` of a grouped convolution, whose rows hold the inputs of their own block."""
    width, weight = module.in_channels // module.groups, module.weight
    rows = weight.shape[0] // module.groups
    blocks = []
    for g in range(module.groups):
        own = [i - g * width for i in inputs if g * width <= i < (g + 1) * width]
        blocks.append(weight[g * rows : (g + 1) * rows, own])
    module.weight = nn.Parameter(torch.cat(blocks), weight.requires_grad)


def _keep(module: nn.Module, names: tuple[str, ...], kept: list[int], dim: int = 0) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        index = torch.tensor(kept, device=tensor.device)
        smaller: Tensor = tensor.detach().index_select(dim, index)
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller, tensor.requires_grad)
        setattr(module, name, smaller)
