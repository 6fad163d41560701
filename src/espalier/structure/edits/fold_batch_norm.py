"""Batch norms folded into the layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit, named_module


@EDITS.register("fold_batch_norm")
@dataclass(frozen=True)
class FoldBatchNorm(StructuralEdit):
    """gamma (W x + b - mean) / sqrt(var + eps) + beta becomes W' x + b' (exact, up to rounding).

    W' = s W for each output, b' = s (b - mean) + beta, s = gamma / sqrt(var + eps). The layer has a
    bias then, and an identity stands where the batch norm was.

    Parameters
    ----------
    pairs : mapping of str to str
        The layer before -> the batch norm.
    """

    pairs: Mapping[str, str]

    def __post_init__(self) -> None:
        for names in self.pairs.items():
            if not all(isinstance(name, str) for name in names):
                raise InvalidArgument(f"{names!r} are no two names of layers")

    def check(self, model: nn.Module) -> None:
        for name, norm_name in self.pairs.items():
            layer, norm = named_module(model, name), named_module(model, norm_name)
            if not isinstance(layer, _ConvNd | nn.Linear):
                raise InvalidArgument(f"{name}: a {type(layer).__name__} cannot take a batch norm")
            if not isinstance(norm, _BatchNorm) or norm.running_var is None:
                raise InvalidArgument(
                    f"{norm_name}: a {type(norm).__name__} is no batch norm with statistics"
                )
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            if outputs != norm.num_features:
                raise InvalidArgument(
                    f"{norm_name}: has {norm.num_features} channels, {name} has {outputs}"
                )

    def apply(self, model: nn.Module) -> None:
        for name, norm_name in self.pairs.items():
            layer, norm = named_module(model, name), named_module(model, norm_name)
            assert isinstance(layer, _ConvNd | nn.Linear)
            assert isinstance(norm, _BatchNorm)
            _fold(layer, norm)
            head, _, tail = norm_name.rpartition(".")
            setattr(model.get_submodule(head), tail, nn.Identity())

    def describe(self) -> list[str]:
        return [f"{name}: {norm} is folded into it" for name, norm in self.pairs.items()]


@torch.no_grad()
def _fold(layer: _ConvNd | nn.Linear, norm: _BatchNorm) -> None:
    """In float64, and rounded once."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -mean.double() if layer.bias is None else layer.bias.double() - mean.double()
    bias = shift * scale + (norm.bias.double() if norm.affine else 0)
    weight = layer.weight
    if isinstance(layer, _ConvTransposeNd):
        # (in, out / groups, ...): the outputs of a group lie in its own rows.
        rows = weight.shape[0] // layer.groups
        by_row = scale.view(layer.groups, -1).repeat_interleave(rows, 0)
        factor = by_row.view(*weight.shape[:2], *[1] * (weight.dim() - 2))
    else:
        factor = scale.view(-1, *[1] * (weight.dim() - 1))
    weight.copy_((weight.double() * factor).to(weight.dtype))
    layer.bias = nn.Parameter(bias.to(weight.dtype), weight.requires_grad)
