"""Linear maps that follow each other, as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit
from espalier.structure.rebuild import REBUILDABLE
from espalier.structure.traced import Traced, set_module


@EDITS.register("merge_linear")
@dataclass(frozen=True)
class MergeLinear(StructuralEdit):
    """W2 (W1 x + b1) + b2 becomes (W2 W1) x + (W2 b1 + b2) (exact, up to rounding).

    For linear layers, and for convolutions of which one has 1x1 kernels. The merged layer stands
    where the first was.

    Parameters
    ----------
    pairs : mapping of str to str
        The first layer -> the second. No layer stands in two pairs.
    """

    pairs: Mapping[str, str]

    def __post_init__(self) -> None:
        names = [*self.pairs, *self.pairs.values()]
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise InvalidArgument(f"{dict(self.pairs)!r} are no pairs of layers")

    def check(self, model: nn.Module) -> None:
        traced = Traced(model)
        for first, second in self.pairs.items():
            for name in (first, second):
                if name not in traced.modules:
                    raise InvalidArgument(
                        f"{name}: the model has no such layer; the edits are of another "
                        "architecture"
                    )
            reason = obstacle(traced, first, second)
            if reason:
                raise InvalidArgument(f"{first}: {second} cannot be merged into it: {reason}")

    def apply(self, model: nn.Module) -> None:
        traced = Traced(model)
        for first, second in self.pairs.items():
            old, behind = traced.modules[first], traced.modules[second]
            set_module(model, first, _product(old, behind))
            traced.remove([traced.only_call(second)])
        traced.commit()

    def describe(self) -> list[str]:
        return [f"{first}: {second} is merged into it" for first, second in self.pairs.items()]


def obstacle(traced: Traced, first: str, second: str) -> str:
    """Why ``second`` cannot be merged into ``first`` exactly, or should not be; empty if it can."""
    for name in (first, second):
        reason = traced.obstacle(name)
        if reason:
            return reason if name == first else f"{name}: {reason}"
    source = traced.source(traced.only_call(second))
    if source is not traced.only_call(first) or len(source.users) != 1:
        return "they do not follow each other"
    a, b = traced.modules[first], traced.modules[second]
    if type(a) is nn.Linear and type(b) is nn.Linear:
        sizes = (a.in_features * b.out_features, a.weight.numel() + b.weight.numel())
        return "" if sizes[0] <= sizes[1] else _larger(*sizes)
    if not (type(a) in REBUILDABLE and type(a) is type(b)):
        return "they are not of one kind"
    assert isinstance(a, _ConvNd)
    assert isinstance(b, _ConvNd)
    return _obstacle_between(a, b)


def _padded(layer: _ConvNd) -> bool:
    return isinstance(layer.padding, str) or max(layer.padding) > 0


def _plain(layer: _ConvNd) -> bool:
    """Whether each position is mapped by itself."""
    return set(layer.kernel_size) == {1} and not _padded(layer)


def _obstacle_between(a: _ConvNd, b: _ConvNd) -> str:
    padded = [_padded(c) for c in (a, b)]
    if a.groups > 1 or b.groups > 1:
        return "one of them has groups"
    if any(c.padding_mode != "zeros" for c, p in zip((a, b), padded, strict=True) if p):
        return "the padding of one of them is not of zeros"
    if _plain(b):
        kernel = a.weight[0, 0].numel()
    elif _plain(a) and set(a.stride) == {1}:
        if padded[1] and a.bias is not None and bool(a.bias.any()):
            return "the second pads with zeros, and not with the bias of the first"
        kernel = b.weight[0, 0].numel()
    else:
        return "neither is 1x1 without stride and padding"
    sizes = (a.in_channels * b.out_channels * kernel, a.weight.numel() + b.weight.numel())
    return "" if sizes[0] <= sizes[1] else _larger(*sizes)


def _larger(merged: int, apart: int) -> str:
    return f"the merged layer would have {merged:,} weights, and not {apart:,}"


@torch.no_grad()
def _product(a: nn.Module, b: nn.Module) -> nn.Module:
    """In float64, and rounded once."""
    assert isinstance(a, nn.Linear | _ConvNd)
    assert isinstance(b, nn.Linear | _ConvNd)
    first, second = a.weight.double(), b.weight.double()
    if isinstance(a, _ConvNd) and set(a.kernel_size) != {1}:
        weight = torch.einsum("om...,mi...->oi...", second.flatten(2), first.flatten(2))
        weight = weight.view(second.shape[0], first.shape[1], *first.shape[2:])
    elif isinstance(a, _ConvNd):
        weight = torch.einsum("omk,mi->oik", second.flatten(2), first.flatten(1))
        weight = weight.view(second.shape[0], first.shape[1], *second.shape[2:])
    else:
        weight = second @ first
    bias: Tensor | None = None if b.bias is None else b.bias.double()
    if a.bias is not None:
        through = (
            second.flatten(2).sum(2) @ a.bias.double()
            if second.dim() > 2
            else (second @ a.bias.double())
        )
        bias = through if bias is None else bias + through
    new = _shell(a, b, bias is not None)
    new.weight.copy_(weight)
    if bias is not None:
        assert isinstance(new.bias, Tensor)
        new.bias.copy_(bias)
    new.requires_grad_(a.weight.requires_grad)
    return new.train(a.training)


def _shell(a: nn.Linear | _ConvNd, b: nn.Linear | _ConvNd, bias: bool) -> nn.Linear | _ConvNd:
    """The merged layer, with any weights."""
    like = {"bias": bias, "device": a.weight.device, "dtype": a.weight.dtype}
    if isinstance(a, nn.Linear):
        assert isinstance(b, nn.Linear)
        return nn.utils.skip_init(nn.Linear, a.in_features, b.out_features, **like)
    assert isinstance(b, _ConvNd)
    wide = a if _plain(b) else b
    return nn.utils.skip_init(
        type(a),
        a.in_channels,
        b.out_channels,
        wide.kernel_size,
        tuple(s * t for s, t in zip(a.stride, b.stride, strict=True)),
        wide.padding,
        dilation=wide.dilation,
        padding_mode=wide.padding_mode,
        **like,
    )
