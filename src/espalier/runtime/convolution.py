"""Convolutions that compute from a packed weight, for inference."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.runtime.layers import DENSE, PackedLayer
from espalier.runtime.packed import PackedMatrix, padded
from espalier.state import Array

_DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_LARGEST = 2**31 - 1
"""Starts are int32."""


class PackedConv(PackedLayer):
    """A convolution from the packed weight, with no patch copied.

    The padded input lies with its channels outermost. A tap of the kernel is then a shift of it:
    the weight of channel c and tap t meets, for place p, the value at ``start(c, t) + p``, so that
    places beside each other are computed at once (Park et al. 2017, arXiv 1608.01409, section 3,
    there image by image). Under a stride s, each s-th row and column is a plane of its own, and a
    tap belongs to one of the planes. Places that no output has, at the ends of rows, are computed
    and dropped.
    """

    def __init__(self, matrix: PackedMatrix, layer: _ConvNd) -> None:
        super().__init__(matrix, layer.weight.shape, layer.bias)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.dilation, self.groups = layer.dilation, layer.groups
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self._edges = list(layer._reversed_padding_repeated_twice)
        self._found: tuple[tuple[int, ...], Array] | None = None

    @staticmethod
    def rows(layer: _ConvNd) -> Tensor:
        """The weight as a matrix of outputs by (channel of the whole input, tap)."""
        weight = layer.weight.detach()
        parts = weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
        return torch.block_diag(*parts) if layer.groups > 1 else parts[0]

    @property
    def weight(self) -> Tensor:
        if self.kept is not None:
            return self.kept
        parts = self.matrix.dense().view(self.groups, self.shape[0] // self.groups, self.groups, -1)
        return torch.cat([parts[g, :, g] for g in range(self.groups)]).view(self.shape)

    def positions(self, x: Tensor) -> int:
        return x.numel() // max(1, self.in_channels)

    def compute(self, x: Tensor, form: str) -> Tensor:
        axes = len(self.kernel_size)
        if x.dim() == axes + 1:
            return self.compute(x[None], form)[0]
        if x.dim() != axes + 2 or x.shape[1] != self.in_channels:
            raise InvalidArgument(
                f"input of shape {tuple(x.shape)} for a convolution of {self.in_channels} channels "
                f"along {axes} axes"
            )
        if self.padding_mode != "zeros":
            x = F.pad(x, self._edges, mode=self.padding_mode)
        return self._dense(x) if form == DENSE or not len(x) else self._shifted(x)

    def _dense(self, x: Tensor) -> Tensor:
        padding = self.padding if self.padding_mode == "zeros" else 0
        convolution: Any = _DENSE[len(self.kernel_size)]
        return convolution(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _shifted(self, x: Tensor) -> Tensor:
        """``x`` is padded already where that takes more than zeros."""
        n, axes = len(x), range(len(self.kernel_size))
        before, after = [0] * len(axes), [0] * len(axes)
        if self.padding_mode == "zeros":
            before, after = self._edges[-2::-2], self._edges[-1::-2]
        sizes = [x.shape[i + 2] + before[i] + after[i] for i in axes]
        spans = [self.dilation[i] * (self.kernel_size[i] - 1) for i in axes]
        outputs = [(sizes[i] - spans[i] - 1) // self.stride[i] + 1 for i in axes]
        if min(outputs) < 1:
            return self._dense(x)  # which says what is wrong
        planes = [-(-sizes[i] // self.stride[i]) for i in axes]
        places = n * prod(planes)
        held = self.in_channels * prod(self.stride) * places
        if held > _LARGEST and n > 1:
            return torch.cat([self._shifted(half) for half in x.split(-(-n // 2))])
        starts = self._starts(n, planes)
        buffer = x.new_zeros(max(held, int(starts.max(initial=0)) + padded(places)))
        self._lay_out(x, before, planes, buffer)
        y = self.matrix.times_tiles(buffer, starts, places, self.addend, torch.get_num_threads())
        y = y[:, :places].view(self.out_channels, n, *planes)
        inside = (slice(None), slice(None), *(slice(size) for size in outputs))
        return y[inside].transpose(0, 1).contiguous()

    def _lay_out(self, x: Tensor, before: list[int], planes: list[int], buffer: Tensor) -> None:
        """Copy ``x`` into ``buffer``: (channels, strides, samples, planes), zeros around it."""
        shape = (self.in_channels, *self.stride, len(x), *planes)
        laid = buffer[: prod(shape)].view(shape).flatten(1, len(self.stride))
        x = x.transpose(0, 1)
        for number, phase in enumerate(itertools.product(*(range(s) for s in self.stride))):
            source: list[slice] = [slice(None)] * 2
            place: list[slice] = [slice(None)] * 2
            for i, stride in enumerate(self.stride):
                first = max(0, -(-(before[i] - phase[i]) // stride))
                start = first * stride + phase[i] - before[i]
                count = max(0, -(-(x.shape[i + 2] - start) // stride))
                source.append(slice(start, None, stride))
                place.append(slice(first, first + count))
            laid[:, number][tuple(place)] = x[tuple(source)]

    def _starts(self, n: int, planes: list[int]) -> Array:
        """Where the values of each column of the matrix begin; the last ones are remembered."""
        found, key = self._found, (n, *planes)
        if found is not None and found[0] == key:
            return found[1]
        plane, shift = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for i, stride in enumerate(self.stride):
            taps = np.arange(self.kernel_size[i]) * self.dilation[i]
            plane = (plane[:, None] * stride + taps % stride).reshape(-1)
            shift = (shift[:, None] * planes[i] + taps // stride).reshape(-1)
        places = n * prod(planes)
        channels = np.arange(self.in_channels)[:, None] * (prod(self.stride) * places)
        starts = (channels + plane * places + shift).reshape(-1).astype(np.int32)
        self._found = key, starts
        return starts

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
