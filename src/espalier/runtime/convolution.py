"""Convolutions that compute from a packed weight, for inference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.runtime.inference_layer import DENSE
from espalier.runtime.layers import LARGEST, PACKED, PackedLayer
from espalier.runtime.packed import PackedMatrix, padded

_DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class PackedConv(PackedLayer):
    """A convolution from the packed weight, with no patch copied.

    The padded input lies with its channels outermost. A tap of the kernel is then a shift of it:
    the weight of channel c and tap t meets, for place p, the value at ``start(c, t) + p``, so that
    places beside each other are computed at once (Park et al. 2017, arXiv 1608.01409, section 3,
    there image by image). Under a stride s, each s-th row and column is a plane of its own, and a
    tap belongs to one of the planes. Places that no output has, at the ends of rows, are computed
    and dropped.
    """

    def __init__(self, matrix: PackedMatrix, layer: _ConvNd, scales: Tensor | None = None) -> None:
        super().__init__(matrix, layer.weight.shape, layer.bias, scales)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.dilation, self.groups = layer.dilation, layer.groups
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.edges = list(layer._reversed_padding_repeated_twice)
        self._found: tuple[torch.Size, _Plan | None] | None = None

    @staticmethod
    def rows(weight: Tensor, groups: int) -> Tensor:
        """A weight as a matrix of outputs by (channel of the whole input, tap)."""
        parts = weight.reshape(groups, weight.shape[0] // groups, -1)
        return torch.block_diag(*parts) if groups > 1 else parts[0]

    def unpacked(self, matrix: PackedMatrix) -> Tensor:
        parts = matrix.dense().view(self.groups, self.shape[0] // self.groups, self.groups, -1)
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
            x = F.pad(x, self.edges, mode=self.padding_mode)
        return self._dense(x) if form == DENSE or not len(x) else self._shifted(x)

    def _dense(self, x: Tensor) -> Tensor:
        padding = self.padding if self.padding_mode == "zeros" else 0
        convolution: Any = _DENSE[len(self.kernel_size)]
        return convolution(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _shifted(self, x: Tensor) -> Tensor:
        """``x`` is padded already where that takes more than zeros."""
        plan = self._plan(x.shape)
        if plan is None:
            return self._dense(x)  # which says what is wrong
        if plan.length > LARGEST:
            halves = x.split(-(-len(x) // 2))
            return self._dense(x) if len(x) == 1 else torch.cat([*map(self._shifted, halves)])
        buffer = x.new_zeros(plan.length)
        laid = buffer[: prod(plan.laid)].view(plan.laid)
        turned = x.transpose(0, 1)
        for place, source in plan.copies:
            laid[place] = turned[source]
        y = self.forms[PACKED].times_tiles(
            buffer, plan.starts, plan.places, self.addend, torch.get_num_threads()
        )
        y = y[:, : plan.places].view(plan.planes)
        return self.scaled(y[plan.inside].transpose(0, 1).contiguous())

    def _plan(self, shape: torch.Size) -> _Plan | None:
        """How inputs of ``shape`` are computed; the last plan is remembered."""
        found = self._found
        if found is None or found[0] != shape:
            found = self._found = shape, _Plan.of(self, shape)
        return found[1]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )


Place = tuple[int | slice, ...]


@dataclass(frozen=True)
class _Plan:
    """How a convolution computes inputs of one shape.

    Attributes
    ----------
    laid : tuple of int
        Channels, planes of a channel, samples, extents of a plane.
    copies : sequence of (Place, Place)
        What part of the input, channels first, goes to which of the padded one.
    starts : int32 Tensor
        Where the values of each column of the matrix begin.
    places : int
    planes : tuple of int
        Shape of the result, with the places that no output has.
    inside : Place
        The others of it.
    length : int
        Of the padded input, with what the last tile reads behind it.
    """

    laid: tuple[int, ...]
    copies: tuple[tuple[Place, Place], ...]
    starts: Tensor
    places: int
    planes: tuple[int, ...]
    inside: Place
    length: int

    @classmethod
    def of(cls, layer: PackedConv, shape: torch.Size) -> _Plan | None:
        """None where the input is smaller than the kernel."""
        n, inputs, axes = shape[0], shape[2:], range(len(layer.stride))
        before, after = [0] * len(axes), [0] * len(axes)
        if layer.padding_mode == "zeros":
            before, after = layer.edges[-2::-2], layer.edges[-1::-2]
        sizes = [inputs[i] + before[i] + after[i] for i in axes]
        spans = [layer.dilation[i] * (layer.kernel_size[i] - 1) for i in axes]
        outputs = [(sizes[i] - spans[i] - 1) // layer.stride[i] + 1 for i in axes]
        if min(outputs) < 1:
            return None
        planes = [-(-sizes[i] // layer.stride[i]) for i in axes]
        if set(layer.stride) == {1}:
            # What a tap meets behind the end of a row is the padding before the next one.
            planes = [max(outputs[i], sizes[i] - min(before[i], after[i])) for i in axes]
        places = n * prod(planes)
        starts = _starts(layer, planes, places)
        laid = (layer.in_channels, prod(layer.stride), n, *planes)
        everything = slice(None)
        return cls(
            laid=laid,
            copies=tuple(_copies(layer, inputs, before, planes)),
            starts=starts,
            places=places,
            planes=(layer.out_channels, n, *planes),
            inside=(everything, everything, *(slice(size) for size in outputs)),
            length=max(prod(laid), int(starts.max()) + padded(places)),
        )


def _starts(layer: PackedConv, planes: list[int], places: int) -> Tensor:
    plane, shift = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for i, stride in enumerate(layer.stride):
        taps = torch.arange(layer.kernel_size[i]) * layer.dilation[i]
        plane = (plane[:, None] * stride + taps % stride).flatten()
        shift = (shift[:, None] * planes[i] + taps // stride).flatten()
    channels = torch.arange(layer.in_channels)[:, None] * (prod(layer.stride) * places)
    starts = (channels + plane * places + shift).flatten()
    return starts.int() if int(starts.max()) <= LARGEST else starts


def _copies(
    layer: PackedConv, inputs: tuple[int, ...], before: list[int], planes: list[int]
) -> Iterator[tuple[Place, Place]]:
    """For each plane, what part of it holds what part of the input; zeros are around it."""
    for number, phase in enumerate(itertools.product(*(range(s) for s in layer.stride))):
        place: list[int | slice] = [slice(None), number, slice(None)]
        source: list[int | slice] = [slice(None), slice(None)]
        for i, stride in enumerate(layer.stride):
            first = max(0, -(-(before[i] - phase[i]) // stride))
            start = first * stride + phase[i] - before[i]
            count = max(0, min(-(-(inputs[i] - start) // stride), planes[i] - first))
            place.append(slice(first, first + count))
            source.append(slice(start, start + count * stride, stride))
        yield tuple(place), tuple(source)
